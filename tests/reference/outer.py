"""Outer optimizers: what the mean of a round is fed to."""

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
