"""Averages of all replicas."""

import numpy as np

from tests.reference.problem import Learners


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
  learners = Learners(problem, learning_rate, momentum, buffers)
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
  learners = Learners(problem, learning_rate, momentum, buffers)
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


def pr_sgd_heterogeneous(
  problem, *, local_steps, learning_rate, momentum=0.0, schedule=None
):
  """Yu, Yang, Zhu 2019, Algorithm 3: I_i steps of replica i, then the mean.

  A round lasts max_i I_i steps of the clock; replica i works in its first I_i
  and waits. `schedule`, if any, gives gamma from the clock's 0-based step.
  """
  learners = Learners(problem, learning_rate, momentum)
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
  learners = Learners(problem, learning_rate, momentum)
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
