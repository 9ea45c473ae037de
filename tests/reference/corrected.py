"""Control variates, weighted and tail averages, natural gradients."""

import numpy as np

from tests.reference.problem import Learners


def scaffold(problem, *, period, learning_rate, momentum=0.0):
  """Karimireddy et al. 2020, Algorithm 1, option II, all clients, eta_g = 1.

  `learning_rate` may be a function of the 0-based step; then K eta_l is the sum
  of the round's. With momentum (not in the paper) the correction is added to
  the velocity.
  """
  n = problem.num_replicas
  rate = learning_rate if callable(learning_rate) else lambda _: learning_rate
  x = problem.start.copy()
  server_c = np.zeros_like(x)
  client_c = [np.zeros_like(x) for _ in range(n)]
  v = [np.zeros_like(x) for _ in range(n)]
  y = [x.copy() for _ in range(n)]
  record = [np.stack(y)]
  t = 0
  while t < problem.num_steps:
    total = 0.0
    for k in range(1, period + 1):
      t += 1
      if t > problem.num_steps:
        break
      total += rate(t - 1)
      for i in range(n):
        v[i] = momentum * v[i] + problem.gradient(i, y[i], t)
        y[i] = y[i] - rate(t - 1) * (v[i] - client_c[i] + server_c)
      if k == period:
        delta_y, delta_c = np.zeros_like(x), np.zeros_like(x)
        for i in range(n):
          c_plus = client_c[i] - server_c + (x - y[i]) / total
          delta_y += (y[i] - x) / n
          delta_c += (c_plus - client_c[i]) / n
          client_c[i] = c_plus
        x = x + delta_y
        server_c = server_c + delta_c
        y = [x.copy() for _ in range(n)]
      record.append(np.stack(y))
  return np.stack(record)


def weighted_averaging(
  problem, *, period, weights, learning_rate, momentum=0.0, local_steps=None
):
  """Rounds of `period` steps, then x_i <- sum_j w_j x_j / sum_j w_j.

  With `local_steps` replica i works in the first I_i steps of a round alone.
  """
  learners = Learners(problem, learning_rate, momentum)
  local_steps = [period] * learners.n if local_steps is None else local_steps
  for t in range(1, problem.num_steps + 1):
    in_round = (t - 1) % period + 1
    for i in range(learners.n):
      if in_round <= local_steps[i]:
        learners.local_step(i, problem.gradient(i, learners.x[i], t))
    if in_round == period:
      mean = np.zeros_like(learners.x[0])
      for w, x in zip(weights, learners.x, strict=True):
        mean = mean + w * x
      mean = mean / sum(weights)
      learners.x = [mean.copy() for _ in range(learners.n)]
    learners.end_of_step()
  return learners.trajectory()


def delay_weights(local_steps, contraction):
  """w_i in proportion to r^(delay of i), its steps behind the first."""
  delays = [max(local_steps) - steps for steps in local_steps]
  powers = [contraction**delay for delay in delays]
  return [power / sum(powers) for power in powers]


def independent_runs(problem, *, learning_rate, momentum=0.0):
  """N runs that never communicate."""
  learners = Learners(problem, learning_rate, momentum)
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(learners.n):
      learners.local_step(i, g[i])
    learners.end_of_step()
  return learners.trajectory()


def tail_average(trajectory, start_step):
  """Jain et al. 2018: mean_i (1 / (T - s)) sum_{t=s+1}^T x_i^t.

  Of x [T + 1, N, d]. As long as T <= s it is mean_i x_i^T.
  """
  tail = trajectory[start_step + 1 :]
  if not len(tail):
    tail = trajectory[-1:]
  return sum(x.mean(axis=0) for x in tail) / len(tail)


class OnlineFisher:
  """Kaldi's F = R' D R + rho I of vectors of one size, with F written out.

  After src/nnet3/natural-gradient-online.h; the first scatter makes F a
  multiple of the identity, and rho is floored before D is set and by the next
  scatter.
  """

  def __init__(self, size, rank, smoothing, update_rate):
    self.size, self.rank = size, min(rank, size - 1)
    self.alpha, self.eta = smoothing, update_rate
    self.basis = np.zeros((self.rank, size))
    for r in range(self.rank):
      for column in range(r, size, self.rank):
        self.basis[r, column] = 1.1 if column == r else 1.0
      self.basis[r] /= np.sqrt((self.basis[r] ** 2).sum())
    self.fisher, self.rho = None, 0.0

  def inverse(self):
    """Of F smoothed, up to a factor; the identity before the first scatter."""
    if self.fisher is None:
      return np.eye(self.size)
    trace = np.trace(self.fisher)
    return np.linalg.inv(
      self.fisher + self.alpha / self.size * trace * np.eye(self.size)
    )

  def see(self, vectors):
    """The update by vectors [M, size]."""
    scatter = np.zeros((self.size, self.size))
    for x in vectors:
      scatter += np.outer(x, x) / len(vectors)
    if np.trace(scatter) == 0:
      return
    if self.fisher is None:
      self.rho = np.trace(scatter) / self.size
      self.fisher = self.rho * np.eye(self.size)
    floor = 5e-4 * self.eta * np.trace(scatter)
    if self.rho < floor:
      self.fisher = self.fisher + (floor - self.rho) * np.eye(self.size)
    smoothed = self.eta * scatter + (1 - self.eta) * self.fisher
    y = self.basis @ smoothed
    c, u = np.linalg.eigh(y @ y.T)
    self.basis = np.diag(c**-0.5) @ u.T @ y
    rho = (np.trace(smoothed) - np.sqrt(c).sum()) / (self.size - self.rank)
    rho = max(rho, 5e-4 * np.sqrt(c.max()))
    d = np.maximum(np.sqrt(c) - rho, 0)
    self.rho = rho
    self.fisher = self.basis.T @ np.diag(d) @ self.basis
    self.fisher = self.fisher + rho * np.eye(self.size)


class NaturalGradient:
  """G -> G multiplied along each axis by the inverse, with the norm of G."""

  def __init__(self, shape, rank, smoothing, update_rate):
    self.fishers = {
      axis: OnlineFisher(size, rank, smoothing, update_rate)
      for axis, size in enumerate(shape)
      if size > 1
    }

  def __call__(self, gradient):
    direction = gradient
    for axis, fisher in self.fishers.items():
      direction = np.moveaxis(
        np.tensordot(fisher.inverse(), direction, (1, axis)), 0, axis
      )
    for axis, fisher in self.fishers.items():
      last = np.moveaxis(gradient, axis, -1)
      fisher.see(last.reshape(-1, fisher.size))
    norm = np.sqrt((direction**2).sum())
    if norm == 0:
      return direction
    return direction * np.sqrt((gradient**2).sum()) / norm


def natural_gradient_averaging(
  problem,
  *,
  layers,
  period,
  rank,
  smoothing,
  update_rate,
  max_change,
  learning_rate,
  momentum=0.0,
  restart=False,
):
  """Povey, Zhang, Khudanpur 2015: natural-gradient SGD, averaged rarely.

  `layers` lists (first, shape) of the parameters of which x is made. With
  `restart` the preconditioner and the velocity begin again after an average.
  """
  n = problem.num_replicas

  def fresh():
    return [
      NaturalGradient(shape, rank, smoothing, update_rate)
      for _, shape in layers
    ]

  x = [problem.start.copy() for _ in range(n)]
  v = [np.zeros_like(problem.start) for _ in range(n)]
  preconditioners = [fresh() for _ in range(n)]
  record = [np.stack(x)]
  for t in range(1, problem.num_steps + 1):
    for i in range(n):
      g = problem.gradient(i, x[i], t)
      for (first, shape), natural in zip(
        layers, preconditioners[i], strict=True
      ):
        part = slice(first, first + int(np.prod(shape)))
        g[part] = natural(g[part].reshape(shape)).ravel()
      v[i] = momentum * v[i] + g
      change = -learning_rate * v[i]
      norm = np.sqrt((change**2).sum())
      if norm > max_change:
        change = change * max_change / norm
      x[i] = x[i] + change
    if t % period == 0:
      mean = sum(x) / n
      x = [mean.copy() for _ in range(n)]
      if restart:
        preconditioners = [fresh() for _ in range(n)]
        v = [np.zeros_like(mean) for _ in range(n)]
    record.append(np.stack(x))
  return np.stack(record)
