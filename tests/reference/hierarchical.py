"""Averages in groups more often than between them."""

from tests.reference.problem import Learners


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
  learners = Learners(problem, learning_rate, momentum, buffers)
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
