"""Replicas that crash, come late or return NaN, and robust averages.

A fault is (replica, first step, end) with 0-based steps; `end` may be None.
"""

import numpy as np

from tests.reference.problem import Learners


class Faults:
  """Who is dead, late or ill at a 0-based step."""

  def __init__(self, n, crashes=(), delays=(), nan_grads=(), nan_params=()):
    self.n = n
    self.crashes, self.delays = crashes, delays
    self.nan_grads, self.nan_params = nan_grads, nan_params

  def _holds(self, faults, i, step):
    return any(
      i == r and step >= a and (end is None or step < end)
      for r, a, end in faults
    )

  def dead(self, i, step):
    return step >= 0 and self._holds(self.crashes, i, step)

  def absent(self, i, step):
    return self.dead(i, step) or self._holds(self.delays, i, step)

  def returning(self, step):
    """(replicas that come back, the one they copy) at a step."""
    was = [self.dead(i, step - 1) for i in range(self.n)]
    now = [self.dead(i, step) for i in range(self.n)]
    back = [i for i in range(self.n) if was[i] and not now[i]]
    healthy = [i for i in range(self.n) if not was[i] and not now[i]]
    return (back, healthy[0]) if healthy else ([], None)

  def gradient(self, problem, i, x, step):
    g = problem.gradient(i, x, step + 1)
    return g * np.nan if self._holds(self.nan_grads, i, step) else g

  def spoil(self, xs, step):
    for i in range(self.n):
      if self._holds(self.nan_params, i, step):
        xs[i] = xs[i] * np.nan


def mean_of(rows):
  return sum(rows) / len(rows)


def mean_of_finite(rows):
  return mean_of([row for row in rows if np.isfinite(row).all()])


def k_avg_with_faults(
  problem,
  *,
  period,
  learning_rate,
  momentum=0.0,
  rejoin='peer',
  aggregate=mean_of,
  average_buffers=False,
  groups=None,
  **faults,
):
  """K local steps, then an aggregate of the replicas that are there.

  `groups` are lists of replicas that average among themselves. A late replica
  receives the aggregate; one that is dead does not. If nobody of a group is
  there, it keeps what it has.
  """
  learners = Learners(problem, learning_rate, momentum)
  faults = Faults(learners.n, **faults)
  groups = groups or [range(learners.n)]
  for step in range(problem.num_steps):
    if rejoin == 'peer':
      back, donor = faults.returning(step)
      for i in back:
        learners.x[i], learners.v[i] = learners.x[donor], learners.v[donor]
    alive = [i for i in range(learners.n) if not faults.dead(i, step)]
    kept = {i: learners.x[i] for i in set(range(learners.n)) - set(alive)}
    faults.spoil(learners.x, step)
    learners.x = [kept.get(i, x) for i, x in enumerate(learners.x)]
    for i in alive:
      g = faults.gradient(problem, i, learners.x[i], step)
      learners.local_step(i, g)
    if (step + 1) % period == 0:
      for group in groups:
        there = [i for i in group if not faults.absent(i, step)]
        if average_buffers:
          there = [i for i in there if np.isfinite(learners.v[i]).all()]
        rows = [learners.x[j].copy() for j in there]
        if aggregate is not mean_of:
          rows = [row for row in rows if np.isfinite(row).all()]
        if not rows:
          continue
        x = aggregate(rows)
        v = mean_of([learners.v[j] for j in there])
        for i in group:
          if i in alive:
            learners.x[i] = x.copy()
            if average_buffers:
              learners.v[i] = v.copy()
    learners.end_of_step()
  return learners.trajectory()


def without_absent(weights, absent):
  """W whose links to and from absent replicas are down, rows still sum to 1."""
  n = len(weights)
  down = weights.copy()
  for i in range(n):
    for j in range(n):
      if i != j and (absent[i] or absent[j]):
        down[i, i] += weights[i, j]
        down[i, j] = 0.0
  return down


def d_psgd_with_faults(
  problem, *, weights, learning_rate, momentum=0.0, rejoin='peer', **faults
):
  """D-PSGD (order A) on a graph whose nodes fail."""
  learners = Learners(problem, learning_rate, momentum)
  faults = Faults(learners.n, **faults)
  for step in range(problem.num_steps):
    if rejoin == 'peer':
      back, donor = faults.returning(step)
      for i in back:
        learners.x[i], learners.v[i] = learners.x[donor], learners.v[donor]
    absent = [faults.absent(i, step) for i in range(learners.n)]
    w = without_absent(weights, absent)
    old = [x.copy() for x in learners.x]
    for i in range(learners.n):
      if faults.dead(i, step):
        continue
      g = faults.gradient(problem, i, old[i], step)
      learners.x[i] = sum(
        w[i, j] * old[j] for j in range(learners.n) if w[i, j] != 0
      )
      learners.local_step(i, g)
    learners.end_of_step()
  return learners.trajectory()


def sgp_with_faults(
  problem, *, weights, learning_rate, momentum=0.0, rejoin='stale', **faults
):
  """Push-sum whose messages to absent replicas stay at their senders.

  The record has z_i = x_i / w_i.
  """
  n = problem.num_replicas
  faults = Faults(n, **faults)
  x = [problem.start.copy() for _ in range(n)]
  v = [np.zeros_like(problem.start) for _ in range(n)]
  w = np.ones(n)
  record = [np.stack(x)]
  for step in range(problem.num_steps):
    if rejoin == 'peer':
      back, donor = faults.returning(step)
      for i in back:
        x[i], v[i], w[i] = x[donor].copy(), v[donor].copy(), w[donor]
    absent = [faults.absent(i, step) for i in range(n)]
    for i in range(n):
      if faults.dead(i, step):
        continue
      g = faults.gradient(problem, i, x[i] / w[i], step)
      v[i] = momentum * v[i] + g
      x[i] = x[i] - learning_rate * v[i]
    push = without_absent(weights.T, absent).T  # columns still sum to 1
    x = [sum(push[i, j] * x[j] for j in range(n)) for i in range(n)]
    w = np.array([sum(push[i, j] * w[j] for j in range(n)) for i in range(n)])
    record.append(np.stack([x[i] / w[i] for i in range(n)]))
  return np.stack(record)


def diloco_with_faults(
  problem,
  *,
  period,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
  rejoin='peer',
  **faults,
):
  """DiLoCo with Nesterov's outer step; each has its own x0 and buffer."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  faults = Faults(n, **faults)
  x0 = [problem.start.copy() for _ in range(n)]
  m = [np.zeros_like(problem.start) for _ in range(n)]
  for step in range(problem.num_steps):
    if rejoin == 'peer':
      back, donor = faults.returning(step)
      for i in back:
        learners.x[i], learners.v[i] = learners.x[donor], learners.v[donor]
        x0[i], m[i] = x0[donor], m[donor]
    alive = [i for i in range(n) if not faults.dead(i, step)]
    for i in alive:
      g = faults.gradient(problem, i, learners.x[i], step)
      learners.local_step(i, g)
    if (step + 1) % period == 0:
      there = [i for i in range(n) if not faults.absent(i, step)]
      if there:
        xbar = mean_of([learners.x[j] for j in there])
      for i in alive:
        delta = x0[i] - (xbar if there else learners.x[i])
        m[i] = outer_momentum * m[i] + delta
        x0[i] = x0[i] - outer_learning_rate * (outer_momentum * m[i] + delta)
        learners.x[i] = x0[i].copy()
    learners.end_of_step()
  return learners.trajectory()


def median(rows):
  return np.array(
    [np.median([row[k] for row in rows]) for k in range(len(rows[0]))]
  )


def trimmed_mean(rows, trim):
  trim = min(trim, (len(rows) - 1) // 2)
  out = []
  for k in range(len(rows[0])):
    values = sorted(row[k] for row in rows)
    kept = values[trim : len(values) - trim]
    out.append(sum(kept) / len(kept))
  return np.array(out)


def geometric_median(rows, iterations=8, smoothing=1e-6):
  z = mean_of(rows)
  for _ in range(iterations):
    near = [1 / max(smoothing, np.linalg.norm(z - row)) for row in rows]
    z = sum(b * row for b, row in zip(near, rows)) / sum(near)
  return z


def krum(rows, faulty, selected=1):
  scores = []
  for i, row in enumerate(rows):
    away = sorted(
      float((row - other) @ (row - other))
      for j, other in enumerate(rows)
      if j != i
    )
    scores.append(sum(away[: max(len(rows) - faulty - 2, 1)]))
  best = sorted(range(len(rows)), key=lambda i: scores[i])[:selected]
  return mean_of([rows[i] for i in best])
