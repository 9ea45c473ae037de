"""Few entries, few frequencies, few directions.

Compressors are `compress(t, i, v)`, as in `reference.compressed`.
"""

import numpy as np

from tests.reference.compressed import cosine_transform
from tests.reference.problem import Learners


def mean_of_sent(q, senders_only):
  """The mean of messages q_j, or of those that are not 0, entry by entry."""
  out = np.zeros_like(q[0])
  for k in range(len(out)):
    senders = [v[k] for v in q if v[k] != 0]
    count = len(senders) if senders_only else len(q)
    out[k] = sum(senders) / count if senders else 0.0
  return out


def sparse_loco(
  problem,
  *,
  period,
  compress,
  decay,
  outer_learning_rate,
  learning_rate,
  momentum=0.0,
  senders_only=False,
):
  """Sarfi et al. 2025: e_i <- beta e_i + z - x_i; q_i = Q(e_i) is sent."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  z = problem.start.copy()
  e = [np.zeros_like(z) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(n):
      learners.local_step(i, g[i])
    if t % period == 0:
      q = []
      for i in range(n):
        e[i] = decay * e[i] + (z - learners.x[i])
        q.append(compress(t, i, e[i]))
        e[i] = e[i] - q[i]
      z = z - outer_learning_rate * mean_of_sent(q, senders_only)
      learners.x = [z.copy() for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def demo(
  problem,
  *,
  matrices,
  k,
  decay,
  learning_rate,
  momentum=0.0,
  senders_only=False,
):
  """Peng et al. 2024, with one chunk for each layer; momentum is of the signs.

  `matrices` are the layers: (where in x, shape of the matrix).
  """
  n, x = problem.num_replicas, problem.start.copy()
  m = [np.zeros_like(x) for _ in range(n)]
  v = np.zeros_like(x)
  record = [x]
  for t in range(1, problem.num_steps + 1):
    for i in range(n):
      m[i] = decay * m[i] + problem.gradient(i, x, t)
    step = np.zeros_like(x)
    for where, shape in matrices:
      q = []
      for i in range(n):
        c = cosine_transform(m[i][where].reshape(shape)).ravel()
        kept = sorted(range(len(c)), key=lambda j: -abs(c[j]))[:k]
        sent = np.zeros_like(c)
        sent[kept] = c[kept]
        q.append(sent)
        m[i][where] -= inverse_cosine_transform(sent.reshape(shape)).ravel()
      mean = mean_of_sent(q, senders_only).reshape(shape)
      step[where] = np.sign(inverse_cosine_transform(mean)).ravel()
    v = momentum * v + step
    x = x - learning_rate * v
    record.append(x)
  return np.stack([np.stack([x] * n) for x in record])


def inverse_cosine_transform(c):
  """DCT-III: the sum of the cosines, with the weights c."""
  h, w = c.shape
  out = np.zeros((h, w))
  for a in range(h):
    for b in range(w):
      for k in range(h):
        for m in range(w):
          norm = (1 if k else 0.5) * (1 if m else 0.5) * 4 / (h * w)
          out[a, b] += (
            np.sqrt(norm)
            * c[k, m]
            * np.cos(np.pi * k * (2 * a + 1) / (2 * h))
            * np.cos(np.pi * m * (2 * b + 1) / (2 * w))
          )
  return out


def sparta(problem, *, drawn, learning_rate, momentum=0.0):
  """After each step the entries `drawn[t - 1]` are averaged."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(n):
      learners.local_step(i, g[i])
    for k in drawn[t - 1]:
      mean = sum(x[k] for x in learners.x) / n
      for x in learners.x:
        x[k] = mean
    learners.end_of_step()
  return learners.trajectory()


def power_sgd(problem, *, matrix, shape, start, learning_rate, momentum=0.0):
  """Vogels et al. 2019, Algorithm 1, for one matrix in x; the rest is whole."""
  n, x = problem.num_replicas, problem.start.copy()
  e = [np.zeros(shape) for _ in range(n)]
  q = np.array(start)
  v, record = np.zeros_like(x), [x]
  for t in range(1, problem.num_steps + 1):
    g = [problem.gradient(i, x, t) for i in range(n)]
    mean = sum(g) / n
    a = [g[i][matrix].reshape(shape) + e[i] for i in range(n)]
    p = gram_schmidt(sum(a[i] @ q for i in range(n)) / n)
    q = sum(a[i].T @ p for i in range(n)) / n
    for i in range(n):
      e[i] = a[i] - p @ q.T
    mean[matrix] = (p @ q.T).ravel()
    v = momentum * v + mean
    x = x - learning_rate * v
    record.append(x)
  return np.stack([np.stack([x] * n) for x in record])


def gram_schmidt(a):
  """Orthonormal columns that span those of a."""
  out = np.array(a, float)
  for k in range(out.shape[1]):
    for j in range(k):
      out[:, k] -= (out[:, j] @ out[:, k]) * out[:, j]
    out[:, k] /= np.sqrt(out[:, k] @ out[:, k])
  return out
