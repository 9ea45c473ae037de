"""Averages with graph neighbours only."""

import numpy as np

from tests.reference.problem import Learners


def ring_weights(num_replicas, self_weight=1 / 3):
  """W of a ring, written edge by edge."""
  weights = np.zeros((num_replicas, num_replicas))
  for i in range(num_replicas):
    weights[i, i] += self_weight
    weights[i, (i + 1) % num_replicas] += (1 - self_weight) / 2
    weights[i, (i - 1) % num_replicas] += (1 - self_weight) / 2
  return weights


def random_doubly_stochastic(num_replicas, seed=0):
  """A mean of random permutation matrices: neither symmetric nor sparse."""
  rng = np.random.default_rng(seed)
  total = np.zeros((num_replicas, num_replicas))
  for _ in range(6):
    total += np.eye(num_replicas)[rng.permutation(num_replicas)]
  return total / 6


def _mixed(weights, x):
  n = len(x)
  return [sum(weights[i, j] * x[j] for j in range(n)) for i in range(n)]


def d_psgd(problem, *, weights, learning_rate, momentum=0.0):
  """Lian et al. 2017, Algorithm 1 (order A): x_i <- sum_j W_ij x_j - gamma G_i.

  The gradient is taken at the replica's own point, before mixing.
  """
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    learners.x = _mixed(weights, learners.x)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def combine_then_adapt(problem, *, weights, learning_rate, momentum=0.0):
  """Order B: y_i = sum_j W_ij x_j, then x_i <- y_i - gamma G(y_i)."""
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    learners.x = _mixed(weights, learners.x)
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def adapt_then_combine(problem, *, weights, learning_rate, momentum=0.0):
  """Order C gossip (diffusion): x_i <- sum_j W_ij (x_j - gamma G(x_j))."""
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.x = _mixed(weights, learners.x)
    learners.end_of_step()
  return learners.trajectory()
