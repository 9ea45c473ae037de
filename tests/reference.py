"""The papers' double loops in NumPy: the oracles of the tests.

Nothing here imports the library, JAX or optax. Each function follows one
paper's pseudocode, replica by replica and step by step, with t = 1, 2, ... as
the papers count, and returns x_i^t for t = 0 .. T as float64[T + 1, N, d].

Momentum is heavy-ball, v <- m v + G and x <- x - gamma v, with one buffer per
replica; `buffers` says what an average of the parameters does to them: 'keep',
'average' or 'reset'.
"""

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
  """f_i(x) = (x - e_i)' H_i (x - e_i) / 2 + sum log cosh(B_i x), and its noise.

  G_i^t = grad f_i(x) + noise[t - 1, i]. With B = 0 it is quadratic.

  Attributes:
    hessian: [N, d, d], H_i, symmetric.
    target: [N, d], e_i.
    features: [N, k, d], B_i.
    noise: [T, N, d].
    start: [d], x_i^0 of all replicas.
  """

  hessian: np.ndarray
  target: np.ndarray
  features: np.ndarray
  noise: np.ndarray
  start: np.ndarray

  @property
  def num_steps(self):
    return self.noise.shape[0]

  @property
  def num_replicas(self):
    return self.noise.shape[1]

  def loss(self, i, x, t):
    e = x - self.target[i]
    smooth = np.log(np.cosh(self.features[i] @ x)).sum()
    return e @ self.hessian[i] @ e / 2 + smooth + self.noise[t - 1, i] @ x

  def gradient(self, i, x, t):
    bend = self.features[i].T @ np.tanh(self.features[i] @ x)
    return self.hessian[i] @ (x - self.target[i]) + bend + self.noise[t - 1, i]


def make_problem(
  num_replicas=8, num_steps=24, dim=6, seed=0, common_hessian=False
):
  """Losses and noise that differ from replica to replica."""
  rng = np.random.default_rng(seed)
  roots = rng.normal(size=(num_replicas, dim, dim)) / np.sqrt(dim)
  hessian = roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(dim)
  features = rng.normal(size=(num_replicas, 3, dim)) / 2
  if common_hessian:
    hessian = np.broadcast_to(hessian[0], hessian.shape)
    features = np.zeros_like(features)
  return Problem(
    hessian=hessian,
    target=rng.normal(size=(num_replicas, dim)),
    features=features,
    noise=rng.normal(size=(num_steps, num_replicas, dim)),
    start=rng.normal(size=dim),
  )


class _Learners:
  """x_i and v_i of N learners, and the record of x."""

  def __init__(self, problem, learning_rate, momentum, buffers='keep'):
    self.problem = problem
    self.n = problem.num_replicas
    self.gamma = learning_rate
    self.m = momentum
    self.buffers = buffers
    self.x = [problem.start.astype(np.float64).copy() for _ in range(self.n)]
    self.v = [np.zeros_like(x) for x in self.x]
    self.record = [np.stack(self.x)]

  def gradients(self, t):
    return [self.problem.gradient(i, self.x[i], t) for i in range(self.n)]

  def local_step(self, i, gradient):
    self.v[i] = self.m * self.v[i] + gradient
    self.x[i] = self.x[i] - self.gamma * self.v[i]

  def average(self, members):
    """Replaces x of the members by their mean, and does what buffers says."""
    x = sum(self.x[j] for j in members) / len(members)
    v = sum(self.v[j] for j in members) / len(members)
    for j in members:
      self.x[j] = x.copy()
      if self.buffers == 'average':
        self.v[j] = v.copy()
      elif self.buffers == 'reset':
        self.v[j] = np.zeros_like(v)

  def end_of_step(self):
    self.record.append(np.stack(self.x))

  def trajectory(self):
    return np.stack(self.record)


def ssgd(problem, *, learning_rate, momentum=0.0):
  """Dekel et al. 2012: one model, the mean of N gradients."""
  x, v = problem.start.copy(), np.zeros_like(problem.start)
  n, record = problem.num_replicas, [problem.start]
  for t in range(1, problem.num_steps + 1):
    g = np.zeros_like(x)
    for i in range(n):
      g += problem.gradient(i, x, t) / n
    v = momentum * v + g
    x = x - learning_rate * v
    record.append(x)
  return np.stack([np.stack([x] * n) for x in record])


def pr_sgd(problem, *, period, learning_rate, momentum=0.0, buffers='keep'):
  """Yu, Yang, Zhu 2019, Algorithm 1.

  G_i^t at x_i^{t-1}; if t mod I = 0: x_i^t = ybar - gamma G_i^t with
  ybar = mean_j x_j^{t-1}; else: x_i^t = x_i^{t-1} - gamma G_i^t.
  """
  learners = _Learners(problem, learning_rate, momentum, buffers)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    if t % period == 0:
      learners.average(range(learners.n))
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def k_avg(problem, *, period, learning_rate, momentum=0.0, buffers='keep'):
  """Zhou, Cong 2018, Algorithm 1: rounds of K local steps and one average."""
  learners = _Learners(problem, learning_rate, momentum, buffers)
  t = 0
  while t < problem.num_steps:
    for k in range(1, period + 1):
      t += 1
      if t > problem.num_steps:
        break
      g = learners.gradients(t)
      for i in range(learners.n):
        learners.local_step(i, g[i])
      if k == period:
        learners.average(range(learners.n))
      learners.end_of_step()
  return learners.trajectory()


def one_shot_averaging(problem, *, learning_rate, momentum=0.0):
  """Zinkevich et al. 2010: N independent runs, then their mean."""
  runs = np.empty((problem.num_steps + 1, *problem.target.shape))
  for i in range(problem.num_replicas):
    x, v = problem.start.copy(), np.zeros_like(problem.start)
    runs[0, i] = x
    for t in range(1, problem.num_steps + 1):
      v = momentum * v + problem.gradient(i, x, t)
      x = x - learning_rate * v
      runs[t, i] = x
  runs[-1] = runs[-1].mean(axis=0)
  return runs


def hier_avg(
  problem,
  *,
  local_period,
  global_period,
  group_size,
  learning_rate,
  momentum=0.0,
  buffers='keep',
):
  """Zhou, Cong 2019, Algorithm 1: K2 / K1 group averages, then a global one."""
  learners = _Learners(problem, learning_rate, momentum, buffers)
  n = learners.n
  assert problem.num_steps % global_period == 0
  t = 0
  for _ in range(problem.num_steps // global_period):
    for beta in range(1, global_period // local_period + 1):
      for k in range(1, local_period + 1):
        t += 1
        g = learners.gradients(t)
        for i in range(n):
          learners.local_step(i, g[i])
        if k == local_period:
          for first in range(0, n, group_size):
            learners.average(range(first, first + group_size))
          if beta == global_period // local_period:
            learners.average(range(n))
        learners.end_of_step()
  return learners.trajectory()


def ring_weights(num_replicas, self_weight=1 / 3):
  """W of a ring, written edge by edge."""
  weights = np.zeros((num_replicas, num_replicas))
  for i in range(num_replicas):
    weights[i, i] += self_weight
    weights[i, (i + 1) % num_replicas] += (1 - self_weight) / 2
    weights[i, (i - 1) % num_replicas] += (1 - self_weight) / 2
  return weights


def _mixed(weights, x):
  n = len(x)
  return [sum(weights[i, j] * x[j] for j in range(n)) for i in range(n)]


def d_psgd(problem, *, weights, learning_rate, momentum=0.0):
  """Lian et al. 2017, Algorithm 1 (order A): x_i <- sum_j W_ij x_j - gamma G_i.

  The gradient is taken at the replica's own point, before mixing.
  """
  learners = _Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    learners.x = _mixed(weights, learners.x)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def combine_then_adapt(problem, *, weights, learning_rate, momentum=0.0):
  """Order B: y_i = sum_j W_ij x_j, then x_i <- y_i - gamma G(y_i)."""
  learners = _Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    learners.x = _mixed(weights, learners.x)
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def adapt_then_combine(problem, *, weights, learning_rate, momentum=0.0):
  """Order C gossip (diffusion): x_i <- sum_j W_ij (x_j - gamma G(x_j))."""
  learners = _Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.x = _mixed(weights, learners.x)
    learners.end_of_step()
  return learners.trajectory()


def pr_sgd_heterogeneous(
  problem, *, local_steps, learning_rate, momentum=0.0, schedule=None
):
  """Yu, Yang, Zhu 2019, Algorithm 3: I_i steps of replica i, then the mean.

  A round lasts max_i I_i steps of the clock; replica i works in its first I_i
  and waits. `schedule`, if any, gives gamma from the clock's 0-based step.
  """
  learners = _Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    if schedule is not None:
      learners.gamma = schedule(t - 1)
    in_round = (t - 1) % max(local_steps) + 1
    for i in range(learners.n):
      if in_round <= local_steps[i]:
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
    if in_round == max(local_steps):
      learners.average(range(learners.n))
    learners.end_of_step()
  return learners.trajectory()


def post_local_sgd(
  problem, *, switch_step, period, learning_rate, momentum=0.0
):
  """Lin et al. 2018: an average at every step up to t', then after every H."""
  learners = _Learners(problem, learning_rate, momentum)
  since = 0
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    since = since + 1 if t > switch_step else 0
    if t <= switch_step or since == period:
      learners.average(range(learners.n))
      since = 0
    learners.end_of_step()
  return learners.trajectory()


def diloco(
  problem,
  *,
  period,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Douillard et al. 2023: rounds of H steps, outer Nesterov SGD.

  Delta = x0 - mean_i x_i; u <- mu u + Delta; x0 <- x0 - eta (mu u + Delta); all
  replicas restart from x0.
  """
  learners = _Learners(problem, learning_rate, momentum)
  anchor = problem.start.copy()
  u = np.zeros_like(anchor)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    if t % period == 0:
      delta = anchor - sum(learners.x) / learners.n
      u = outer_momentum * u + delta
      anchor = anchor - outer_learning_rate * (outer_momentum * u + delta)
      learners.x = [anchor.copy() for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def consensus_distance(x):
  """(1/N) sum_i |x_i - xbar|^2 of [N, d]."""
  xbar = x.mean(axis=0)
  return sum(float((xi - xbar) @ (xi - xbar)) for xi in x) / len(x)


def random_doubly_stochastic(num_replicas, seed=0):
  """A mean of random permutation matrices: neither symmetric nor sparse."""
  rng = np.random.default_rng(seed)
  total = np.zeros((num_replicas, num_replicas))
  for _ in range(6):
    total += np.eye(num_replicas)[rng.permutation(num_replicas)]
  return total / 6
