"""Federated averages: clients drawn, weighed, held back, normalized."""

import numpy as np

from tests.reference.problem import Learners


def fedavg(
  problem,
  *,
  period,
  draws,
  learning_rate,
  momentum=0.0,
  weights=None,
  server=None,
  buffers='reset',
  compress=None,
  mu=0.0,
):
  """McMahan et al. 2017, Algorithm 1: clients of a round, then their mean.

  `draws[r]` are the clients of round r, in which each takes K steps from x with
  buffers of its own that begin again (or, with `buffers` 'keep', do not);
  x <- sum n_i x_i / sum n_i. With `server`, x <- x + server(x - that mean)
  (Reddi et al. 2021). With `compress`, client i sends Q(n_i (x_i - x)) and the
  mean is x + sum Q / sum n_i. With `mu`, client i descends f_i(y) + mu |y -
  x|^2 / 2 (Li et al. 2020).
  """
  learners = Learners(problem, learning_rate, momentum, buffers)
  sizes = [1.0] * learners.n if weights is None else weights
  x = problem.start.copy()
  for t in range(1, problem.num_steps + 1):
    clients = draws[(t - 1) // period]
    for i in clients:
      pull = mu * (learners.x[i] - x)
      learners.local_step(i, problem.gradient(i, learners.x[i], t) + pull)
    if t % period == 0:
      total = sum(sizes[i] for i in clients)
      if compress is None:
        mean = sum(sizes[i] * learners.x[i] for i in clients) / total
      else:
        sent = [compress(t, i, sizes[i] * (learners.x[i] - x)) for i in clients]
        mean = x + sum(sent) / total
      x = mean if server is None else x + server(x - mean)
      learners.x = [x.copy() for _ in range(learners.n)]
      if buffers == 'reset':
        learners.v = [np.zeros_like(x) for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def fednova(
  problem,
  *,
  local_steps,
  learning_rate,
  momentum=0.0,
  normalizers=None,
  buffers='keep',
):
  """Wang et al. 2020: x <- x - tau_eff mean_i (d_i / a_i), tau_eff = mean a_i.

  d_i = x - x_i after I_i steps of a round of max_i I_i, and a_i = I_i unless
  given.
  """
  learners = Learners(problem, learning_rate, momentum)
  n, length = learners.n, max(local_steps)
  a = local_steps if normalizers is None else normalizers
  tau_eff = sum(a) / n
  x = problem.start.copy()
  for t in range(1, problem.num_steps + 1):
    k = (t - 1) % length + 1
    for i in range(n):
      if k <= local_steps[i]:
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
    if k == length:
      d = sum((x - learners.x[i]) / a[i] for i in range(n)) / n
      x = x - tau_eff * d
      learners.x = [x.copy() for _ in range(n)]
      if buffers == 'reset':
        learners.v = [np.zeros_like(x) for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()


class Yogi:
  """Reddi et al. 2021, Algorithm 2 with Yogi's v, of the pseudo-gradient.

  Delta = -g; m <- b1 m + (1 - b1) Delta; v <- v - (1 - b2) Delta^2 sign(v -
  Delta^2); the step is eta m / (sqrt(v) + tau), with moments m and v divided by
  1 - b^r as Adam does and the paper does not.
  """

  def __init__(self, dim, learning_rate, b1, b2, eps, start):
    self.rate, self.b1, self.b2, self.eps = learning_rate, b1, b2, eps
    self.m, self.v, self.rounds = np.full(dim, start), np.full(dim, start), 0

  def __call__(self, pseudo_gradient):
    self.rounds += 1
    g = pseudo_gradient
    self.m = self.b1 * self.m + (1 - self.b1) * g
    self.v = self.v - (1 - self.b2) * np.sign(self.v - g**2) * g**2
    m = self.m / (1 - self.b1**self.rounds)
    v = self.v / (1 - self.b2**self.rounds)
    return -self.rate * m / (np.sqrt(v) + self.eps)
