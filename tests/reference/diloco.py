"""DiLoCo and its relatives: rounds of local steps, and what is made of them.

A *part* is an array of coordinates, one tensor of the model.
"""

import math

import numpy as np

from tests.reference.problem import Learners


class Nesterov:
  """m <- mu m + d; z <- z - eta (mu m + d), as PyTorch and optax have it."""

  def __init__(self, start, rate, momentum):
    self.z, self.m = start.copy(), np.zeros_like(start)
    self.rate, self.momentum = rate, momentum

  def step(self, d):
    self.m = self.momentum * self.m + d
    self.z = self.z - self.rate * (self.momentum * self.m + d)
    return self.z


def outer_gossip(
  problem,
  *,
  period,
  weights,
  outer_learning_rate,
  outer_momentum,
  nesterov=True,
  learning_rate,
  momentum=0.0,
):
  """A point z_i of its own on each replica: d_i = z_i - sum_j W_ij x_j.

  With heavy ball instead of Nesterov momentum it is NoLoCo, whose W averages
  pairs. `weights` are W, or one W for each round.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  z = [problem.start.copy() for _ in range(n)]
  m = [np.zeros_like(problem.start) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      w = weights if np.ndim(weights) == 2 else weights[t // period - 1]
      mixed = [sum(w[i, j] * learners.x[j] for j in range(n)) for i in range(n)]
      for i in range(n):
        d = z[i] - mixed[i]
        m[i] = outer_momentum * m[i] + d
        step = outer_momentum * m[i] + d if nesterov else m[i]
        z[i] = z[i] - outer_learning_rate * step
        learners.x[i] = z[i].copy()
    learners.end_of_step()
  return learners.trajectory()


def noloco(
  problem,
  *,
  period,
  pairs,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Kolehmainen et al. 2025 and their code: groups of two, no all-reduce.

  delta_i <- a delta_i + eta mean_g(x_j - phi_j) + eta (mean_g phi_j - phi_i);
  phi_i <- phi_i + delta_i; x_i <- phi_i. `pairs[r]` are the groups of round r.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  phi = [problem.start.copy() for _ in range(n)]
  delta = [np.zeros_like(problem.start) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      for group in pairs[t // period - 1]:
        moved = sum(learners.x[j] - phi[j] for j in group) / len(group)
        middle = sum(phi[j] for j in group) / len(group)
        for i in group:
          delta[i] = (
            outer_momentum * delta[i]
            + outer_learning_rate * moved
            + outer_learning_rate * (middle - phi[i])
          )
        for i in group:
          phi[i] = phi[i] + delta[i]
          learners.x[i] = phi[i].copy()
    learners.end_of_step()
  return learners.trajectory()


def hier_outer(
  problem,
  *,
  local_period,
  global_period,
  group_size,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Hier-AVG whose upper level is an outer Nesterov step, not a mean."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  outer = Nesterov(problem.start, outer_learning_rate, outer_momentum)
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % local_period == 0:
      for first in range(0, n, group_size):
        learners.average(range(first, first + group_size))
    if t % global_period == 0:
      z = outer.step(outer.z - sum(learners.x) / n)
      learners.x = [z.copy() for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def slowmo_sgp(
  problem,
  *,
  weights,
  period,
  slow_learning_rate,
  slow_momentum,
  learning_rate,
  momentum=0.0,
):
  """SlowMo around SGP: its exact average is sum_j x_j / sum_j w_j."""
  learners, x, w, push = _push_sum(problem, weights, learning_rate, momentum)
  n = learners.n
  x0, u = problem.start.copy(), np.zeros_like(problem.start)
  for t in range(1, problem.num_steps + 1):
    push(t)
    if t % period == 0:
      mean = sum(x) / sum(w)
      u = slow_momentum * u + (x0 - mean) / learning_rate
      x0 = x0 - slow_learning_rate * learning_rate * u
      x[:], w[:] = [x0.copy() for _ in range(n)], [1.0] * n
    learners.x = [x[i] / w[i] for i in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def diloco_sgp(
  problem,
  *,
  weights,
  period,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """DiLoCo around SGP, with the same exact average."""
  learners, x, w, push = _push_sum(problem, weights, learning_rate, momentum)
  n = learners.n
  outer = Nesterov(problem.start, outer_learning_rate, outer_momentum)
  for t in range(1, problem.num_steps + 1):
    push(t)
    if t % period == 0:
      z = outer.step(outer.z - sum(x) / sum(w))
      x[:], w[:] = [z.copy() for _ in range(n)], [1.0] * n
    learners.x = [x[i] / w[i] for i in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def _push_sum(problem, weights, learning_rate, momentum):
  """The learners, their numerators x and weights w, and a step of SGP."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  x, w = [z.copy() for z in learners.x], [1.0] * n

  def push(t):
    for i in range(n):
      g = problem.gradient(i, learners.x[i], t)
      learners.v[i] = momentum * learners.v[i] + g
      x[i] = x[i] - learning_rate * learners.v[i]
    x[:] = [sum(weights[i, j] * x[j] for j in range(n)) for i in range(n)]
    w[:] = [sum(weights[i, j] * w[j] for j in range(n)) for i in range(n)]

  return learners, x, w, push


def coded_streaming_diloco(
  problem,
  *,
  period,
  members,
  delay,
  alpha,
  compress,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Douillard et al. 2025, Algorithm 2, with codes of the differences.

  `compress(t, i, v)` codes v, which is 1 outside the fragment sent at t.
  """
  learners = Learners(problem, learning_rate, momentum)
  n, count = learners.n, len(members)
  outer = [
    Nesterov(problem.start[part], outer_learning_rate, outer_momentum)
    for part in members
  ]
  arrivals = {}
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    for p, part in enumerate(members):
      if (t - (p + 1) * period // count) % period == 0:
        total = np.zeros(len(part))
        for i in range(n):
          v = np.ones_like(problem.start)
          v[part] = outer[p].z - learners.x[i][part]
          total += compress(t, i, v)[part] / n
        arrivals[p, t + delay] = total
      if (p, t) in arrivals:
        z = outer[p].step(arrivals.pop((p, t)))
        for i in range(n):
          own = learners.x[i].copy()
          own[part] = alpha * own[part] + (1 - alpha) * z
          learners.x[i] = own
    learners.end_of_step()
  return learners.trajectory()


def newton_schulz(g, steps=5):
  """Jordan's quintic: X <- a X + b (X X') X + c (X X')^2 X, X = G / |G|."""
  a, b, c = 3.4445, -4.7750, 2.0315
  x = g / (np.sqrt((g * g).sum()) + 1e-8)
  if g.shape[0] > g.shape[1]:
    x = x.T
  for _ in range(steps):
    s = x @ x.T
    x = a * x + (b * s + c * s @ s) @ x
  return x.T if g.shape[0] > g.shape[1] else x


class Muon:
  """Muon of one matrix and NAdam of one vector, one replica's optimizer.

  With optax's bias correction: the momentum of step t is divided by
  1 - beta^(t + 1), the gradient by 1 - beta^t.
  """

  def __init__(self, rate, shape, beta=0.95, b1=0.9, b2=0.999, eps=1e-8):
    self.rate, self.shape, self.size = rate, shape, shape[0] * shape[1]
    self.beta, self.b1, self.b2, self.eps = beta, b1, b2, eps
    self.m, self.first, self.second, self.t = 0.0, 0.0, 0.0, 0

  def __call__(self, g):
    self.t += 1
    w, b = g[: self.size].reshape(self.shape), g[self.size :]

    def ahead(m, g, beta):
      m = beta * m / (1 - beta ** (self.t + 1))
      return m + (1 - beta) * g / (1 - beta**self.t)

    self.m = self.beta * self.m + (1 - self.beta) * w
    step = newton_schulz(ahead(self.m, w, self.beta))
    step *= math.sqrt(max(1, self.shape[1] / self.shape[0]))
    self.first = self.b1 * self.first + (1 - self.b1) * b
    self.second = self.b2 * self.second + (1 - self.b2) * b * b
    root = np.sqrt(self.second / (1 - self.b2**self.t)) + self.eps
    other = ahead(self.first, b, self.b1) / root
    return self.rate * np.concatenate([step.ravel(), other])


def muloco(
  problem,
  *,
  period,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Therien et al. 2025: Muon inside; u <- mu u + eta d; z <- z - mu u - eta d.

  `outer_learning_rate` is a number, or a function of the round 0, 1, ...
  """
  del momentum
  learners = Learners(problem, learning_rate, 0.0)
  shape = ((len(problem.start) - 2) // 2, 2)
  inner = [Muon(learning_rate, shape) for _ in range(learners.n)]
  z, u = problem.start.copy(), np.zeros_like(problem.start)
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.x[i] = learners.x[i] - inner[i](g)
    if t % period == 0:
      d = z - sum(learners.x) / learners.n
      rate = outer_learning_rate
      eta = rate(t // period - 1) if callable(rate) else rate
      u = outer_momentum * u + eta * d
      z = z - outer_momentum * u - eta * d
      learners.x = [z.copy() for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def des_loc(
  problem,
  *,
  period,
  first_period,
  second_period,
  b1,
  b2,
  eps,
  learning_rate,
  momentum=0.0,
):
  """Iacob et al. 2025: x, m and v of local Adams, averaged at their own times.

  At t the means are of what the step before left, the gradient is that of x_i
  before its mean. The moments are corrected for their start as in Adam.
  """
  del momentum
  learners = Learners(problem, learning_rate, 0.0)
  n = learners.n
  m = [np.zeros_like(problem.start) for _ in range(n)]
  v = [np.zeros_like(problem.start) for _ in range(n)]

  def mean(values):
    return [sum(values) / n for _ in range(n)]

  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    x = mean(learners.x) if t % period == 0 else learners.x
    m = mean(m) if first_period and t % first_period == 0 else m
    v = mean(v) if second_period and t % second_period == 0 else v
    for i in range(n):
      m[i] = b1 * m[i] + (1 - b1) * g[i]
      v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
      direction = m[i] / (1 - b1**t)
      direction = direction / (np.sqrt(v[i] / (1 - b2**t)) + eps)
      learners.x[i] = x[i] - learning_rate * direction
    learners.end_of_step()
  return learners.trajectory()


def eager_diloco(
  problem,
  *,
  period,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Kale et al. 2025: own difference now, other differences a round late.

  Delta_i(r) = d_i(r) / N + sum_{j != i} d_j(r - 1) / N, with d_j(-1) = 0; each
  replica has an outer point and buffer of its own.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  outer = [
    Nesterov(problem.start, outer_learning_rate, outer_momentum)
    for _ in range(n)
  ]
  last = [np.zeros_like(problem.start) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      d = [outer[i].z - learners.x[i] for i in range(n)]
      for i in range(n):
        others = sum((last[j] for j in range(n) if j != i), np.zeros_like(d[i]))
        learners.x[i] = outer[i].step((d[i] + others) / n).copy()
      last = d
    learners.end_of_step()
  return learners.trajectory()


def delayed_diloco(
  problem,
  *,
  period,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """DiLoCo that steps by the mean difference of the round before."""
  learners = Learners(problem, learning_rate, momentum)
  outer = Nesterov(problem.start, outer_learning_rate, outer_momentum)
  queue = [np.zeros_like(problem.start)]
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      queue.append(outer.z - sum(learners.x) / learners.n)
      z = outer.step(queue.pop(0))
      learners.x = [z.copy() for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def delayed_nesterov(
  problem,
  *,
  durations,
  local_steps,
  buffer_size,
  outer_learning_rate,
  outer_momentum,
  activation,
  learning_rate,
  momentum=0.0,
  server=False,
):
  """Liu et al. 2024: an asynchronous server with delayed Nesterov momentum.

  Worker i takes `local_steps[i]` steps of `durations[i]` ticks from the model
  it last fetched, hands in the difference g and fetches again. The server, for
  the arrivals s = 0, 1, ... in the order of ticks and of workers: D <- D + g;
  if (s + 1) mod n = 0: m <- beta m + D / n, x <- x - eta ((1 - c n + c) beta m
  + g / n), D <- 0; otherwise x <- x - eta (c beta m + g / n). All of one tick
  fetch one model. With `server` the trajectory of the server is returned.
  """
  learners = Learners(problem, learning_rate, momentum)
  n, size, c = learners.n, buffer_size, activation
  x = problem.start.copy()
  m, total = np.zeros_like(x), np.zeros_like(x)
  fetched = [x.copy() for _ in range(n)]
  done, arrived, models = [0] * n, 0, [x]
  for t in range(1, problem.num_steps + 1):
    waiting = []
    for i in range(n):
      if t % durations[i] == 0:
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
        done[i] += 1
        if done[i] == local_steps[i]:
          waiting.append(i)
    for i in waiting:
      g = fetched[i] - learners.x[i]
      total = total + g
      arrived += 1
      if arrived % size == 0:
        m = outer_momentum * m + total / size
        step = (1 - c * size + c) * outer_momentum * m + g / size
        total = np.zeros_like(x)
      else:
        step = c * outer_momentum * m + g / size
      x = x - outer_learning_rate * step
    for i in waiting:
      fetched[i], learners.x[i], done[i] = x.copy(), x.copy(), 0
    models.append(x)
    learners.end_of_step()
  return np.stack(models) if server else learners.trajectory()


def edit(
  problem,
  *,
  period,
  parts,
  threshold,
  norm_rate,
  warmup_rounds,
  clip_norm,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Cheng et al. 2024, and atorch: differences weighted by their size.

  Of each part: n_i = |z - x_i|; replicas whose z-score is above the threshold,
  or whose n_i is not finite, have weight 0, the others softmax(-n_i); the
  weighted mean is clipped to the norm `clip_norm`. Then every replica moves its
  mean and variance of n_i by the rate.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  outer = Nesterov(problem.start, outer_learning_rate, outer_momentum)
  mean, var = np.zeros((n, len(parts))), np.zeros((n, len(parts)))
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      seen = t // period - 1  # rounds before this one
      total = np.zeros_like(problem.start)
      for k, part in enumerate(parts):
        d = [(outer.z - x)[part] for x in learners.x]
        size = [np.sqrt((v * v).sum()) for v in d]
        good = []
        for i in range(n):
          score = 0.0
          if seen >= warmup_rounds and var[i, k] > 0:
            score = (size[i] - mean[i, k]) / np.sqrt(var[i, k])
          if np.isfinite(size[i]):
            if score <= threshold:
              good.append(i)
            shift = size[i] - mean[i, k]
            mean[i, k] += norm_rate * shift
            rest = size[i] - mean[i, k]
            var[i, k] = (1 - norm_rate) * (var[i, k] + norm_rate * shift * rest)
        if good:
          least = min(size[i] for i in good)
          weights = {i: np.exp(least - size[i]) for i in good}
          average = sum(weights[i] * d[i] for i in good) / sum(weights.values())
          norm = np.sqrt((average * average).sum())
          total[part] = average * min(1.0, clip_norm / (norm + 1e-6))
      z = outer.step(total)
      learners.x = [z.copy() for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def decoupled_diloco(
  problem,
  *,
  parts,
  local_steps,
  draws,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Decoupled DiLoCo's merge: tokens^2 / steps, norms and directions apart.

  Replica i takes the first I_i steps of a round, of one token each; those of
  `draws[r]` are there at its end. Of each part, with w_i = I_i of those and
  d_i = z - x_i: the mean norm times the direction of the mean direction.
  """
  learners = Learners(problem, learning_rate, momentum)
  n, length = learners.n, max(local_steps)
  outer = Nesterov(problem.start, outer_learning_rate, outer_momentum)
  for t in range(1, problem.num_steps + 1):
    k = (t - 1) % length + 1
    for i in range(n):
      if k <= local_steps[i]:
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
    if k == length:
      here = draws[t // length - 1]
      tokens = {i: local_steps[i] for i in here}
      weights = {i: tokens[i] ** 2 / local_steps[i] for i in here}
      mass = sum(weights.values())
      total = np.zeros_like(problem.start)
      for part in parts:
        d = {i: (outer.z - learners.x[i])[part] for i in here}
        size = {i: np.sqrt((d[i] ** 2).sum()) for i in here}
        radius = sum(weights[i] * size[i] for i in here) / mass
        way = sum(weights[i] * d[i] / size[i] for i in here) / mass
        total[part] = radius * way / np.sqrt((way**2).sum())
      z = outer.step(total)
      learners.x = [z.copy() for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()
