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


def multi_level_avg(
  problem, *, periods, group_sizes, learning_rate, momentum=0.0
):
  """Level l is P_l / P_{l-1} runs of level l - 1, then a mean of its groups.

  `group_sizes` has one entry for each period here.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  assert problem.num_steps % periods[-1] == 0
  t = 0

  def run(level, averages):
    """A round of a level; `averages` are due at its end, lower levels first."""
    nonlocal t
    if level < 0:
      t += 1
      g = learners.gradients(t)
      for i in range(n):
        learners.local_step(i, g[i])
      for size in averages:
        for first in range(0, n, size):
          learners.average(range(first, first + size))
      learners.end_of_step()
      return
    inside = periods[level] // (periods[level - 1] if level else 1)
    for k in range(1, inside + 1):
      due = [group_sizes[level], *averages] if k == inside else []
      run(level - 1, due)

  for _ in range(problem.num_steps // periods[-1]):
    run(len(periods) - 1, [])
  return learners.trajectory()


def hierarchical_local_sgd(
  problem,
  *,
  period,
  block_steps,
  group_size,
  learning_rate,
  momentum=0.0,
  switch_step=0,
):
  """Lin et al. 2020: H local steps, H^b block averages, then one of all."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  t = 0

  def step():
    nonlocal t
    t += 1
    for i in range(n):
      learners.local_step(i, problem.gradient(i, learners.x[i], t))

  while t < switch_step:
    step()
    learners.average(range(n))
    learners.end_of_step()
  assert (problem.num_steps - t) % (period * block_steps) == 0
  while t < problem.num_steps:
    for block_step in range(1, block_steps + 1):
      for h in range(1, period + 1):
        step()
        if h == period:
          for first in range(0, n, group_size):
            learners.average(range(first, first + group_size))
          if block_step == block_steps:
            learners.average(range(n))
        learners.end_of_step()
  return learners.trajectory()
