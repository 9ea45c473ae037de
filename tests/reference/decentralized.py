"""Averages with graph neighbors only."""

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


def star_weights(num_replicas):
  """W of a star: 1 / N on the edges to replica 0, the rest on the diagonal."""
  weights = np.zeros((num_replicas, num_replicas))
  for j in range(1, num_replicas):
    weights[0, j] = weights[j, 0] = 1 / num_replicas
    weights[j, j] = 1 - 1 / num_replicas
  weights[0, 0] = 1 / num_replicas
  return weights


def random_doubly_stochastic(num_replicas, seed=0):
  """A mean of random permutation matrices: neither symmetric nor sparse."""
  rng = np.random.default_rng(seed)
  total = np.zeros((num_replicas, num_replicas))
  for _ in range(6):
    total += np.eye(num_replicas)[rng.permutation(num_replicas)]
  return total / 6


def random_column_stochastic(num_replicas, seed=0):
  """Directed and irregular: columns sum to one, rows do not.

  Replica 0 sends to all, each one to the next, odd ones to the third next too.
  """
  rng = np.random.default_rng(seed)
  n = num_replicas
  weights = np.zeros((n, n))
  for j in range(n):
    receivers = {j, (j + 1) % n} | ({(j + 3) % n} if j % 2 else set())
    for i in range(n) if j == 0 else receivers:
      weights[i, j] = rng.uniform(0.5, 1.5)
    weights[:, j] /= weights[:, j].sum()
  return weights


def one_peer_exponential_weights(num_replicas, num_rounds):
  """One W for each round: x_i <- (x_i + x_{i - 2^k}) / 2, k by turns."""
  n = num_replicas
  hops = [h for h in (1, 2, 4, 8, 16, 32) if h < n]
  weights = np.zeros((num_rounds, n, n))
  for r in range(num_rounds):
    for i in range(n):
      weights[r, i, i] += 0.5
      weights[r, i, (i - hops[r % len(hops)]) % n] += 0.5
  return weights


def base_graph_weights(num_rounds):
  """One W for each round of Base-4 on eight replicas: 8 = 2 times 4."""
  weights = np.zeros((num_rounds, 8, 8))
  for r in range(num_rounds):
    for i in range(8):
      for j in range(8):
        if r % 2 == 0 and i // 2 == j // 2:
          weights[r, i, j] = 1 / 2
        if r % 2 == 1 and i % 2 == j % 2:
          weights[r, i, j] = 1 / 4
  return weights


def neighbor_weights(neighbors):
  """float64[T, N, N]: x_i <- (x_i + x_j) / 2 with j = neighbors[t, i]."""
  num_rounds, n = neighbors.shape
  weights = np.zeros((num_rounds, n, n))
  for r in range(num_rounds):
    for i in range(n):
      weights[r, i, i] += 0.5
      weights[r, i, neighbors[r, i]] += 0.5
  return weights


def matcha_weights(active, matchings, alpha):
  """float64[T, N, N]: I - alpha times the Laplacians that are active.

  `active` is bool[T, M], and a matching a list of pairs.
  """
  n = 1 + max(max(pair) for pairs in matchings for pair in pairs)
  weights = np.tile(np.eye(n), (len(active), 1, 1))
  for r in range(len(active)):
    for pairs, fires in zip(matchings, active[r]):
      for i, j in pairs if fires else ():
        weights[r, i, i] -= alpha
        weights[r, j, j] -= alpha
        weights[r, i, j] += alpha
        weights[r, j, i] += alpha
  return weights


def _mixed(weights, x, t=1):
  """With W, or with the W of step t of [T, N, N]."""
  n = len(x)
  weights = weights if weights.ndim == 2 else weights[t - 1]
  return [sum(weights[i, j] * x[j] for j in range(n)) for i in range(n)]


def d_psgd(problem, *, weights, learning_rate, momentum=0.0):
  """Lian et al. 2017, Algorithm 1 (order A): x_i <- sum_j W_ij x_j - gamma G_i.

  The gradient is taken at the replica's own point, before mixing.
  """
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    learners.x = _mixed(weights, learners.x, t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def combine_then_adapt(problem, *, weights, learning_rate, momentum=0.0):
  """Order B: y_i = sum_j W_ij x_j, then x_i <- y_i - gamma G(y_i)."""
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    learners.x = _mixed(weights, learners.x, t)
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def adapt_then_combine(
  problem, *, weights, learning_rate, momentum=0.0, period=1
):
  """Order C gossip (diffusion): x_i <- sum_j W_ij (x_j - gamma G(x_j))."""
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    if t % period == 0:
      learners.x = _mixed(weights, learners.x, t)
    learners.end_of_step()
  return learners.trajectory()


def sgp(problem, *, weights, learning_rate, momentum=0.0, period=1):
  """Assran et al. 2019, Algorithm 1; the record is of z.

  The gradient is taken at z_i = x_i / w_i and applied to x_i; then, every
  `period` steps, x_i <- sum_j p_ij x_j and w_i <- sum_j p_ij w_j; z_i = x_i /
  w_i.
  """
  n = problem.num_replicas
  learners = Learners(problem, learning_rate, momentum)  # its x is z
  x, w = [z.copy() for z in learners.x], [1.0] * n
  for t in range(1, problem.num_steps + 1):
    for i in range(n):
      g = problem.gradient(i, learners.x[i], t)
      learners.v[i] = momentum * learners.v[i] + g
      x[i] = x[i] - learning_rate * learners.v[i]
    if t % period == 0:
      x, w = _mixed(weights, x, t), _mixed(weights, w, t)
    learners.x = [x[i] / w[i] for i in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def ad_psgd(problem, *, durations, partners, learning_rate, momentum=0.0):
  """Lian et al. 2018, Algorithm 1, with workers that last some ticks.

  Worker i reads its model, computes for durations[i] ticks, then averages
  atomically with its neighbor of that tick, whatever that one is at, and
  applies its gradient. `partners[t - 1][i]` is the neighbor, i for nobody.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  read, begun = [None] * n, [None] * n
  for t in range(1, problem.num_steps + 1):
    for i in range(n):
      if begun[i] is None:
        read[i], begun[i] = learners.x[i].copy(), t
    done = [i for i in range(n) if t - begun[i] + 1 == durations[i]]
    met = set()
    for i in done:
      j = partners[t - 1][i]
      if i not in met:
        mean = (learners.x[i] + learners.x[j]) / 2
        learners.x[i], learners.x[j] = mean, mean.copy()
        met |= {i, j}
    for i in done:
      learners.local_step(i, problem.gradient(i, read[i], begun[i]))
      begun[i] = None
    learners.end_of_step()
  return learners.trajectory()


def sparq_sgd(
  problem,
  *,
  weights,
  period,
  compress,
  consensus_step_size,
  threshold,
  learning_rate,
  momentum=0.0,
):
  """Singh et al. 2019, Algorithm 1: CHOCO whose learners may keep silent.

  `threshold(t)` is c_t. Returns the trajectory, and who sent, bool[T, N].
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  xhat = [np.zeros_like(problem.start) for _ in range(n)]
  sent = np.zeros((problem.num_steps, n), bool)
  for t in range(1, problem.num_steps + 1):
    for i, g in enumerate(learners.gradients(t)):
      learners.local_step(i, g)
    if t % period == 0:
      for i in range(n):
        change = learners.x[i] - xhat[i]
        if change @ change > threshold(t) * learning_rate**2:
          xhat[i] = xhat[i] + compress(t, i, change)
          sent[t - 1, i] = True
      for i in range(n):
        pull = sum(weights[i, j] * (xhat[j] - xhat[i]) for j in range(n))
        learners.x[i] = learners.x[i] + consensus_step_size * pull
    learners.end_of_step()
  return learners.trajectory(), sent
