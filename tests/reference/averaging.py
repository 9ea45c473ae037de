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


def pr_sgd_time_varying(
  problem,
  *,
  epoch_lengths,
  learning_rate,
  momentum=0.0,
  epoch_learning_rates=None,
  buffers='keep',
):
  """Yu, Yang, Zhu 2019, Algorithm 2: epoch s has K^s local steps with gamma^s.

  x_i^{s,0} = mean_j x_j^{s-1,K^{s-1}}. The record has an epoch's last point
  after that mean, where it has x_i^{s+1,0}. The steps given out must be T.
  """
  learners = Learners(problem, learning_rate, momentum, buffers)
  assert sum(epoch_lengths) == problem.num_steps
  t = 0
  for s in range(len(epoch_lengths)):
    if epoch_learning_rates is not None:
      learners.gamma = epoch_learning_rates[s]
    for k in range(1, epoch_lengths[s] + 1):
      t += 1
      for i in range(learners.n):
        g = problem.gradient(i, learners.x[i], t)
        learners.local_step(i, g)
      if k == epoch_lengths[s]:
        learners.average(range(learners.n))
      learners.end_of_step()
  return learners.trajectory()


def qsr(
  problem, *, rates, alpha, base_period, learning_rate=None, momentum=0.0
):
  """Gu et al. 2024: rounds of H steps, H = max(H_base, floor((alpha/eta)^2)).

  eta is `rates[t]` of the round's first step; the last round ends with the run.
  """
  del learning_rate
  learners = Learners(problem, None, momentum)
  t = 0
  while t < problem.num_steps:
    h = max(base_period, int(np.floor((alpha / rates[t]) ** 2)))
    h = min(h, problem.num_steps - t)
    for k in range(1, h + 1):
      learners.gamma = rates[t]
      t += 1
      for i in range(learners.n):
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
      if k == h:
        learners.average(range(learners.n))
      learners.end_of_step()
  return learners.trajectory()


def dynamic_averaging(
  problem, *, check_period, threshold, learning_rate, momentum=0.0, seen=None
):
  """Kamp et al. 2018, with all replicas in the balancing set.

  Every b steps: if |x_i - r|^2 > Delta for some i, all take the mean, and r is
  it. `seen`, if a list, gets (t, largest squared distance, averaged or not).
  """
  learners = Learners(problem, learning_rate, momentum)
  r = problem.start.copy()
  for t in range(1, problem.num_steps + 1):
    for i in range(learners.n):
      learners.local_step(i, problem.gradient(i, learners.x[i], t))
    if t % check_period == 0:
      far = [float((x - r) @ (x - r)) for x in learners.x]
      violated = any(d > threshold for d in far)
      if violated:
        learners.average(range(learners.n))
        r = learners.x[0].copy()
      if seen is not None:
        seen.append((t, max(far), violated))
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
  problem,
  *,
  local_steps,
  learning_rate,
  momentum=0.0,
  schedule=None,
  buffers='keep',
):
  """Yu, Yang, Zhu 2019, Algorithm 3: I_i steps of replica i, then the mean.

  A round lasts max_i I_i steps of the clock; replica i works in its first I_i
  and waits. `schedule`, if any, gives gamma from the clock's 0-based step.
  """
  learners = Learners(problem, learning_rate, momentum, buffers)
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
