"""Compressors, and the algorithms that send what they leave.

What a compressor draws by chance is an argument. The algorithms take Q as
`compress(t, i, v)`, so that the draws can be those of step and replica.
"""

import numpy as np

from tests.reference.problem import Learners


def by_layer(quantize, layers, v):
  """Q of each layer by itself: `quantize(number of the layer, part of v)`."""
  out = np.empty_like(v)
  for number, layer in enumerate(layers):
    out[layer] = quantize(number, v[layer])
  return out


def stochastic_levels(v, *, levels, uniform):
  """Alistarh et al. 2017, section 3.1, entry by entry."""
  norm = np.sqrt(sum(x * x for x in v))
  out = np.zeros_like(v)
  for k, x in enumerate(v):
    share = levels * abs(x) / norm
    lower = int(share)
    level = lower + 1 if uniform[k] < share - lower else lower
    out[k] = norm * np.sign(x) * level / levels
  return out


def ternary(v, *, uniform):
  """Wen et al. 2017, equation 3: s sgn(g) b with P(b_k = 1) = |g_k| / s."""
  s = max(abs(x) for x in v)
  out = np.zeros_like(v)
  for k, x in enumerate(v):
    b = 1 if uniform[k] < abs(x) / s else 0
    out[k] = s * np.sign(x) * b
  return out


def signs(v):
  """Karimireddy et al. 2019: |v|_1 / n sgn(v), where a zero counts as +."""
  return np.abs(v).sum() / len(v) * np.where(v < 0, -1.0, 1.0)


def top_k(v, *, k):
  """The k entries of largest size, of equal ones the first."""
  kept = sorted(range(len(v)), key=lambda j: (-abs(v[j]), j))[:k]
  return random_k(v, places=kept)


def random_k(v, *, places):
  out = np.zeros_like(v)
  for j in places:
    out[j] = v[j]
  return out


def chunked_top_k(v, *, shape, k, chunk, values=None):
  """The k largest of each chunk of a matrix, the others 0.

  `values` is Q of all that is kept, chunk by chunk and largest first.
  """
  x = np.asarray(v).reshape(shape)
  kept = [
    sorted(places, key=lambda p: -abs(x[p]))[:k]
    for places in chunk_places(shape, chunk)
  ]
  kept = [place for places in kept for place in places]
  sent = np.array([x[place] for place in kept])
  out = np.zeros(shape)
  for place, value in zip(kept, sent if values is None else values(sent)):
    out[place] = value
  return out.reshape(np.shape(v))


def chunk_places(shape, chunk):
  """The places of each chunk of a matrix, row by row."""

  def pieces(n):
    size = max(d for d in range(1, min(n, chunk) + 1) if n % d == 0)
    return [range(start, start + size) for start in range(0, n, size)]

  rows, columns = map(pieces, shape)
  return [[(a, b) for a in r for b in c] for r in rows for c in columns]


def bin_means(v, *, bins=4, sigmas=6.0):
  """The binning of SparseLoCo's authors, entry by entry."""
  n = len(v)
  if n == 1:
    return np.array(v)
  mean = sum(v) / n
  std = np.sqrt(sum((x - mean) ** 2 for x in v) / (n - 1))
  numbers = [
    min(max(round((x - mean) / (sigmas * std / bins)) + bins // 2, 0), bins - 1)
    for x in v
  ]
  return np.array(
    [
      np.mean([x for x, b in zip(v, numbers) if b == number])
      for number in numbers
    ]
  )


def small_float(v, *, exponent_bits, mantissa_bits):
  """The nearest number with these bits, by trying all of them."""
  numbers = []
  for e in range(2**exponent_bits):
    for m in range(2**mantissa_bits):
      fraction = m / 2**mantissa_bits
      numbers.append(2.0**e * (1 + fraction) if e else 2 * fraction)
  scale = max(abs(x) for x in v) / max(numbers)
  out = [
    np.sign(x) * scale * min(numbers, key=lambda a: abs(abs(x) / scale - a))
    for x in v
  ]
  return np.array(out)


def cosine_transform(x):
  """The orthonormal DCT-II along both sides of a matrix, from its formula."""
  h, w = x.shape
  out = np.zeros((h, w))
  for k in range(h):
    for m in range(w):
      total = 0.0
      for a in range(h):
        for b in range(w):
          total += (
            x[a, b]
            * np.cos(np.pi * k * (2 * a + 1) / (2 * h))
            * np.cos(np.pi * m * (2 * b + 1) / (2 * w))
          )
      norm = (1 if k else 0.5) * (1 if m else 0.5) * 4 / (h * w)
      out[k, m] = np.sqrt(norm) * total
  return out


def compressed_sgd(problem, *, compress, learning_rate, momentum=0.0):
  """QSGD (Alistarh et al. 2017) and TernGrad (Wen et al. 2017), Algorithms 1.

  One model; every learner sends Q(g_i), all apply the mean.
  """
  x, v = problem.start.copy(), np.zeros_like(problem.start)
  n, record = problem.num_replicas, [problem.start]
  for t in range(1, problem.num_steps + 1):
    g = np.zeros_like(x)
    for i in range(n):
      g += compress(t, i, problem.gradient(i, x, t)) / n
    v = momentum * v + g
    x = x - learning_rate * v
    record.append(x)
  return np.stack([np.stack([x] * n) for x in record])


def sign_sgd(problem, *, learning_rate, momentum=0.0):
  """Bernstein et al. 2019, Algorithm 1 with beta = 0: the votes are counted."""
  x, v = problem.start.copy(), np.zeros_like(problem.start)
  n, record = problem.num_replicas, [problem.start]
  for t in range(1, problem.num_steps + 1):
    votes = np.zeros(len(x), int)
    for i in range(n):
      votes += np.where(problem.gradient(i, x, t) < 0, -1, 1)
    v = momentum * v + np.sign(votes)
    x = x - learning_rate * v
    record.append(x)
  return np.stack([np.stack([x] * n) for x in record])


def error_feedback_sgd(problem, *, compress, learning_rate, momentum=0.0):
  """Stich et al. 2018, Algorithm 2: one model, an error for every learner.

  p_i = gamma v_i + e_i, v_i the learner's own momentum; x <- x - mean Q(p_i);
  e_i <- p_i - Q(p_i).
  """
  x, n = problem.start.copy(), problem.num_replicas
  v = [np.zeros_like(x) for _ in range(n)]
  e = [np.zeros_like(x) for _ in range(n)]
  record = [x]
  for t in range(1, problem.num_steps + 1):
    total = np.zeros_like(x)
    for i in range(n):
      v[i] = momentum * v[i] + problem.gradient(i, x, t)
      p = learning_rate * v[i] + e[i]
      q = compress(t, i, p)
      e[i] = p - q
      total += q
    x = x - total / n
    record.append(x)
  return np.stack([np.stack([x] * n) for x in record])


def fedpaq(problem, *, period, compress, learning_rate, momentum=0.0):
  """Reisizadeh et al. 2020, Algorithm 1, all nodes taking part."""
  return _averaged_differences(
    problem, period, compress, learning_rate, momentum, remember=False
  )


def qsparse_local_sgd(problem, *, period, compress, learning_rate, momentum):
  """Basu et al. 2019, Algorithm 1: m_i is what was left out so far."""
  return _averaged_differences(
    problem, period, compress, learning_rate, momentum, remember=True
  )


def _averaged_differences(
  problem, period, compress, learning_rate, momentum, remember
):
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  server = problem.start.copy()
  m = [np.zeros_like(server) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(n):
      learners.local_step(i, g[i])
    if t % period == 0:
      received = []
      for i in range(n):
        p = learners.x[i] - server + m[i]
        q = compress(t, i, p)
        received.append(q)
        if remember:
          m[i] = p - q
      server = server + sum(received) / n
      learners.x = [server.copy() for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()


def choco_sgd(
  problem,
  *,
  weights,
  compress,
  consensus_step_size,
  learning_rate,
  momentum=0.0,
  period=1,
):
  """Koloskova et al. 2019, Algorithm 2, with all copies xhat_j kept.

  The copies of xhat_j at its neighbors are the same as its own. They speak
  after every `period` steps, in the paper after each.
  """
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  xhat = [np.zeros_like(problem.start) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(n):
      learners.local_step(i, g[i])
    if t % period == 0:
      q = [compress(t, i, learners.x[i] - xhat[i]) for i in range(n)]
      xhat = [xhat[j] + q[j] for j in range(n)]
      for i in range(n):
        pull = np.zeros_like(xhat[i])
        for j in range(n):
          pull += weights[i, j] * (xhat[j] - xhat[i])
        learners.x[i] = learners.x[i] + consensus_step_size * pull
    learners.end_of_step()
  return learners.trajectory()


def coded_diloco(
  problem,
  *,
  period,
  compress,
  decay,
  outer_learning_rate,
  outer_momentum,
  learning_rate,
  momentum=0.0,
):
  """Outer Nesterov SGD whose replicas send Q(x0 - x_i + decay e_i)."""
  learners = Learners(problem, learning_rate, momentum)
  n = learners.n
  x0, u = problem.start.copy(), np.zeros_like(problem.start)
  e = [np.zeros_like(x0) for _ in range(n)]
  for t in range(1, problem.num_steps + 1):
    g = learners.gradients(t)
    for i in range(n):
      learners.local_step(i, g[i])
    if t % period == 0:
      total = np.zeros_like(x0)
      for i in range(n):
        p = x0 - learners.x[i] + decay * e[i]
        q = compress(t, i, p)
        e[i] = p - q
        total += q / n
      u = outer_momentum * u + total
      x0 = x0 - outer_learning_rate * (outer_momentum * u + total)
      learners.x = [x0.copy() for _ in range(n)]
    learners.end_of_step()
  return learners.trajectory()
