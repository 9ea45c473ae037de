"""Dion of the mean gradient, on one machine."""

import numpy as np


def dion(
  problem, *, layers, start, rate, learning_rate, momentum=0.0, epsilon=1e-8
):
  """Ahn et al. 2025: M += G; M ~ P R' of low rank; X -= gamma P Q'.

  `layers` lists (first, shape) of the parameters of which x is made, `start`
  the first Q of each, None for a vector. A matrix is [out, in] in the paper,
  and [in, out] in x. `rate` is the paper's mu; `momentum`, of the optimizer
  that is fed the directions, must be 0.
  """
  assert momentum == 0.0
  n = problem.num_replicas
  x = problem.start.copy()
  memory = [np.zeros(shape[::-1]) for _, shape in layers]
  right = [None if q is None else q.copy() for q in start]
  record = [x.copy()]
  for t in range(1, problem.num_steps + 1):
    g = sum(problem.gradient(i, x, t) for i in range(n)) / n
    step = g.copy()
    for k, (first, shape) in enumerate(layers):
      if right[k] is None:
        continue
      fan_in, fan_out = shape
      part = slice(first, first + fan_in * fan_out)
      m = memory[k] + g[part].reshape(shape).T
      p = np.linalg.qr(m @ right[k])[0]
      r = m.T @ p
      memory[k] = m - (1 - rate) * p @ r.T
      lengths = np.sqrt((r**2).sum(axis=0))
      right[k] = r / (lengths + epsilon)
      update = np.sqrt(fan_out / fan_in) * p @ right[k].T
      step[part] = update.T.ravel()
    x = x - learning_rate * step
    record.append(x.copy())
  return np.stack([np.stack([x] * n) for x in record])
