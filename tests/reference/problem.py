"""The problems of the oracles, and N learners with momentum."""

from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
  """f_i(x) = (x - e_i)' H_i (x - e_i) / 2 + sum log cosh(B_i x), and its noise.

  G_i^t = grad f_i(x) + noise[t - 1, i]. With B = 0 it is quadratic.

  Attributes:
    hessian: [N, d, d], H_i, symmetric.
    target: [N, d], e_i.
    features: [N, k, d], B_i.
    noise: [T, N, d].
    start: [d], x_i^0 of all replicas.
  """

  hessian: np.ndarray
  target: np.ndarray
  features: np.ndarray
  noise: np.ndarray
  start: np.ndarray

  @property
  def num_steps(self):
    return self.noise.shape[0]

  @property
  def num_replicas(self):
    return self.noise.shape[1]

  def loss(self, i, x, t):
    e = x - self.target[i]
    smooth = np.log(np.cosh(self.features[i] @ x)).sum()
    return e @ self.hessian[i] @ e / 2 + smooth + self.noise[t - 1, i] @ x

  def gradient(self, i, x, t):
    bend = self.features[i].T @ np.tanh(self.features[i] @ x)
    return self.hessian[i] @ (x - self.target[i]) + bend + self.noise[t - 1, i]


def make_problem(
  num_replicas=8, num_steps=24, dim=6, seed=0, common_hessian=False
):
  """Losses and noise that differ from replica to replica."""
  rng = np.random.default_rng(seed)
  roots = rng.normal(size=(num_replicas, dim, dim)) / np.sqrt(dim)
  hessian = roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(dim)
  features = rng.normal(size=(num_replicas, 3, dim)) / 2
  if common_hessian:
    hessian = np.broadcast_to(hessian[0], hessian.shape)
    features = np.zeros_like(features)
  return Problem(
    hessian=hessian,
    target=rng.normal(size=(num_replicas, dim)),
    features=features,
    noise=rng.normal(size=(num_steps, num_replicas, dim)),
    start=rng.normal(size=dim),
  )


class Learners:
  """x_i and v_i of N learners, and the record of x."""

  def __init__(self, problem, learning_rate, momentum, buffers='keep'):
    self.problem = problem
    self.n = problem.num_replicas
    self.gamma = learning_rate
    self.m = momentum
    self.buffers = buffers
    self.x = [problem.start.astype(np.float64).copy() for _ in range(self.n)]
    self.v = [np.zeros_like(x) for x in self.x]
    self.record = [np.stack(self.x)]

  def gradients(self, t):
    return [self.problem.gradient(i, self.x[i], t) for i in range(self.n)]

  def local_step(self, i, gradient):
    self.v[i] = self.m * self.v[i] + gradient
    self.x[i] = self.x[i] - self.gamma * self.v[i]

  def average(self, members):
    """Replace x of the members by their mean, and do what buffers says."""
    x = sum(self.x[j] for j in members) / len(members)
    v = sum(self.v[j] for j in members) / len(members)
    for j in members:
      self.x[j] = x.copy()
      if self.buffers == 'average':
        self.v[j] = v.copy()
      elif self.buffers == 'reset':
        self.v[j] = np.zeros_like(v)

  def end_of_step(self):
    self.record.append(np.stack(self.x))

  def trajectory(self):
    return np.stack(self.record)


def consensus_distance(x):
  """(1/N) sum_i |x_i - xbar|^2 of [N, d]."""
  xbar = x.mean(axis=0)
  return sum(float((xi - xbar) @ (xi - xbar)) for xi in x) / len(x)
