"""Decentralized methods that are exact on unlike data, and their relatives.

Each is written as its paper writes it, with x of two steps or one message for
each link. A learner's step is -gamma v_i, v_i its heavy-ball buffer.
"""

import numpy as np

from tests.reference.decentralized import _mixed
from tests.reference.problem import Learners


def _steps(learners, t):
  """u_i of all learners, whose x stays."""
  before = [x.copy() for x in learners.x]
  for i, g in enumerate(learners.gradients(t)):
    learners.local_step(i, g)
  steps = [after - x for after, x in zip(learners.x, before, strict=True)]
  learners.x = before
  return steps


def gradient_tracking(problem, *, weights, learning_rate, momentum=0.0):
  """Pu, Nedic 2018 (DSGT), adapt-then-combine, with u_i for -gamma g_i.

  y_i tracks the mean of u: y_i <- sum_j W_ij y_j + u_i - u_i^-, and
  x_i <- sum_j W_ij (x_j + y_j).
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  y = last = None
  for t in range(1, problem.num_steps + 1):
    u = _steps(learners, t)
    if y is None:
      y = [a.copy() for a in u]
    else:
      mixed = _mixed(weights, y, t - 1)
      y = [mixed[i] + u[i] - last[i] for i in range(n)]
    last = u
    moved = [learners.x[i] + y[i] for i in range(n)]
    learners.x = _mixed(weights, moved, t)
    learners.end_of_step()
  return learners.trajectory()


def d2(problem, *, weights, learning_rate, momentum=0.0):
  """Tang et al. 2018: x+ = W (2 x - x^- + u - u^-), at first W (x + u)."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  before = last = None
  for t in range(1, problem.num_steps + 1):
    u = _steps(learners, t)
    x = learners.x
    if before is None:
      moved = [x[i] + u[i] for i in range(n)]
    else:
      moved = [2 * x[i] - before[i] + u[i] - last[i] for i in range(n)]
    before, last = x, u
    learners.x = _mixed(weights, moved)
    learners.end_of_step()
  return learners.trajectory()


def extra(problem, *, weights, learning_rate, momentum=0.0):
  """Shi et al. 2015: x^1 = W x^0 + u^0, and then

  x^{k+2} = (I + W) x^{k+1} - (I + W) / 2 x^k + u^{k+1} - u^k.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  before = last = None
  for t in range(1, problem.num_steps + 1):
    u = _steps(learners, t)
    x = learners.x
    mixed = _mixed(weights, x)
    if before is None:
      new = [mixed[i] + u[i] for i in range(n)]
    else:
      old = _mixed((np.eye(n) + weights) / 2, before)
      new = [x[i] + mixed[i] - old[i] + u[i] - last[i] for i in range(n)]
    before, last = x, u
    learners.x = new
    learners.end_of_step()
  return learners.trajectory()


def k_gt(
  problem,
  *,
  weights,
  period,
  outer_learning_rate=1.0,
  learning_rate,
  momentum=0.0,
):
  """Liu et al. 2023 (K-GT): K steps y <- y - gamma (g + c_i) from x_i, then

  s_i = (x_i - y_i) / (K gamma); c_i <- c_i - s_i + sum_j W_ij s_j;
  x_i <- sum_j W_ij (x_j - K gamma eta s_j).
  """
  learners = Learners(problem, learning_rate, momentum)
  n, gamma = learners.n, learning_rate
  x = [a.copy() for a in learners.x]
  c = [np.zeros_like(a) for a in x]
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
      learners.x[i] = learners.x[i] - gamma * c[i]
    if t % period == 0:
      s = [(x[i] - learners.x[i]) / (period * gamma) for i in range(n)]
      mixed = _mixed(weights, s)
      c = [c[i] - s[i] + mixed[i] for i in range(n)]
      step = period * gamma * outer_learning_rate
      x = _mixed(weights, [x[j] - step * s[j] for j in range(n)])
      learners.x = [a.copy() for a in x]
    learners.end_of_step()
  return learners.trajectory()


def qg_dsgdm(problem, *, weights, learning_rate, momentum):
  """Lin et al. 2021 (QG-DSGDm), mu = beta: the momentum is of x, not of g.

  x_i^{1/2} = x_i - gamma (beta m_i + g_i); x_i^+ = sum_j W_ij x_j^{1/2};
  m_i <- beta m_i + (1 - beta) (x_i - x_i^+) / gamma.
  """
  learners = Learners(problem, learning_rate, 0.0)
  n, beta = learners.n, momentum
  m = [np.zeros_like(x) for x in learners.x]
  for t in range(1, problem.num_steps + 1):
    x = [a.copy() for a in learners.x]
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, beta * m[i] + g)
    learners.x = _mixed(weights, learners.x, t)
    for i in range(n):
      d = (x[i] - learners.x[i]) / learning_rate
      m[i] = beta * m[i] + (1 - beta) * d
    learners.end_of_step()
  return learners.trajectory()


def relay_sgd(problem, *, edges, learning_rate, momentum=0.0):
  """Vogels et al. 2021 (RelaySGD): one message and one count for each link.

  i sends j its x_i and all that it had from its other neighbors a step ago;
  what is missing of N models is filled up by x^0.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  near = [[a + b - i for a, b in edges if i in (a, b)] for i in range(n)]
  links = [(i, j) for i in range(n) for j in near[i]]
  sums = {link: np.zeros_like(problem.start) for link in links}
  counts = dict.fromkeys(links, 0)
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    x = learners.x
    new = {
      (i, j): x[i] + sum(sums[k, i] for k in near[i] if k != j) for i, j in sums
    }
    counts = {
      (i, j): 1 + sum(counts[k, i] for k in near[i] if k != j)
      for i, j in counts
    }
    sums = new
    learners.x = []
    for i in range(n):
      count = 1 + sum(counts[k, i] for k in near[i])
      total = x[i] + sum(sums[k, i] for k in near[i])
      learners.x.append((total + (n - count) * problem.start) / n)
    learners.end_of_step()
  return learners.trajectory()
