"""Outer optimizers, fed the mean of a round, and elastic averages."""

import numpy as np

from tests.reference.problem import Learners


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
  learners = Learners(problem, learning_rate, momentum)
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


def slowmo(
  problem,
  *,
  period,
  slow_learning_rate,
  slow_momentum,
  learning_rate,
  momentum=0.0,
  buffers='keep',
  schedule=None,
):
  """Wang et al. 2020, Algorithm 1: outer iterations of tau steps and one mean.

  u <- beta u + (x_0 - xbar_tau) / gamma; x <- x_0 - alpha gamma u. `schedule`,
  if any, gives gamma from the clock's 0-based step; the outer iteration has
  that of its last step.
  """
  learners = Learners(problem, learning_rate, momentum, buffers)
  x_0 = problem.start.copy()
  u = np.zeros_like(x_0)
  t = 0
  while t < problem.num_steps:
    for k in range(1, period + 1):
      t += 1
      if t > problem.num_steps:
        break
      if schedule is not None:
        learners.gamma = schedule(t - 1)
      for i, g in enumerate(learners.gradients(t)):
        learners.local_step(i, g)
      if k == period:
        learners.average(range(learners.n))
        u = slow_momentum * u + (x_0 - learners.x[0]) / learners.gamma
        x_0 = x_0 - slow_learning_rate * learners.gamma * u
        learners.x = [x_0.copy() for _ in range(learners.n)]
      learners.end_of_step()
  return learners.trajectory()


def bmuf(
  problem,
  *,
  period,
  block_momentum,
  block_learning_rate,
  nesterov,
  learning_rate,
  momentum=0.0,
):
  """Chen, Huo 2016: classical (CBM) and Nesterov (NBM) block momentum.

  G = wbar - w_g; Delta <- eta Delta + zeta G; w <- w + Delta. The next block
  starts from w_g = w, by NBM from w_g = w + eta Delta.
  """
  learners = Learners(problem, learning_rate, momentum)
  w = problem.start.copy()
  broadcast = w.copy()
  delta = np.zeros_like(w)
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      block_gradient = sum(learners.x) / learners.n - broadcast
      delta = block_momentum * delta + block_learning_rate * block_gradient
      w = w + delta
      broadcast = w + block_momentum * delta if nesterov else w.copy()
      learners.x = [broadcast.copy() for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def streaming_diloco(
  problem,
  *,
  period,
  members,
  delay,
  alpha,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Douillard et al. 2025: fragment p = 1 .. P is sent at t = p H / P mod H.

  `members[p - 1]` are the coordinates of fragment p. At t each replica sends
  Delta_i = x0 - x_i of the fragment; at t + tau it receives their mean, steps
  x0 by outer Nesterov SGD and sets x_i <- alpha x_i + (1 - alpha) x0.
  """
  learners = Learners(problem, learning_rate, momentum)
  count = len(members)
  x0 = problem.start.copy()
  u = np.zeros_like(x0)
  in_flight = {}
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    for p in range(1, count + 1):
      part = members[p - 1]
      if (t - p * period // count) % period == 0:
        differences = [x0[part] - x[part] for x in learners.x]
        in_flight[p, t + delay] = sum(differences) / learners.n
      if (p, t) in in_flight:
        delta = in_flight.pop((p, t))
        u[part] = outer_momentum * u[part] + delta
        step = outer_momentum * u[part] + delta
        x0[part] = x0[part] - outer_learning_rate * step
        for i in range(learners.n):
          own = learners.x[i].copy()
          own[part] = alpha * own[part] + (1 - alpha) * x0[part]
          learners.x[i] = own
    learners.end_of_step()
  return learners.trajectory()


def palsgd(
  problem,
  *,
  period,
  pulled,
  probability,
  pull,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Naganuma et al. 2025: DiLoCo whose replicas are pulled to x0 by chance.

  If pulled[t - 1, i], x_i <- x_i - gamma (k / p) (x_i - x0); otherwise a step
  of learning rate gamma / (1 - p).
  """
  learners = Learners(problem, learning_rate / (1 - probability), momentum)
  anchor = problem.start.copy()
  u = np.zeros_like(anchor)
  for t in range(1, problem.num_steps + 1):
    for i in range(learners.n):
      if pulled[t - 1][i]:
        away = learners.x[i] - anchor
        force = learning_rate / probability * pull * away
        learners.x[i] = learners.x[i] - force
      else:
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
    if t % period == 0:
      delta = anchor - sum(learners.x) / learners.n
      u = outer_momentum * u + delta
      anchor = anchor - outer_learning_rate * (outer_momentum * u + delta)
      learners.x = [anchor.copy() for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def easgd(problem, *, period, alpha, learning_rate, momentum=0.0, center=False):
  """Zhang, Choromanska, LeCun 2015: every tau steps, all of the old x_i and c,

  x_i <- x_i - gamma G(x_i) - alpha (x_i - c), c <- c + alpha sum_i (x_i - c).
  With `center` the trajectory is that of c.
  """
  learners = Learners(problem, learning_rate, momentum)
  c = problem.start.copy()
  centers = [c]
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    force = [np.zeros_like(c) for _ in range(learners.n)]
    if t % period == 0:
      force = [alpha * (x - c) for x in learners.x]
    for i in range(learners.n):
      learners.local_step(i, g[i])
      learners.x[i] = learners.x[i] - force[i]
      c = c + force[i]
    centers.append(c)
    learners.end_of_step()
  return np.stack(centers) if center else learners.trajectory()


def eamsgd(problem, *, period, alpha, learning_rate, momentum, center=False):
  """Zhang, Choromanska, LeCun 2015, Algorithm 2, all workers in step.

  v_i <- delta v_i - gamma G(x_i + delta v_i); x_i <- x_i + v_i, and every tau
  steps the elastic force of the old x_i and c.
  """
  n = problem.num_replicas
  x = [problem.start.copy() for _ in range(n)]
  v = [np.zeros_like(problem.start) for _ in range(n)]
  c = problem.start.copy()
  record, centers = [np.stack(x)], [c]
  for t in range(1, problem.num_steps + 1):
    old = c
    for i in range(n):
      g = problem.gradient(i, x[i] + momentum * v[i], t)
      v[i] = momentum * v[i] - learning_rate * g
      force = alpha * (x[i] - old) if t % period == 0 else np.zeros_like(old)
      x[i] = x[i] + v[i] - force
      c = c + force
    record.append(np.stack(x))
    centers.append(c)
  return np.stack(centers) if center else np.stack(record)
