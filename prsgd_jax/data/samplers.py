"""SAMPLERS: the rows of each replica's batch, computed on the device.

The data set is on every device once, as uint8. `batch_fn` gathers and augments
batches inside the scan, so the host does no work per step. The rows are a pure
function of (seed, replica, step). They do not depend on the devices, and a
resumed run continues with the same examples. Larger data are streamed, see
`engine.stack_batches`.

An epoch is n examples over all replicas together, n the size of the data set.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array
from prsgd_jax.checks import (
  check_positive,
  check_positive_int,
  check_seed,
  check_step,
)
from prsgd_jax.tree_types import describe

Transform = Callable[[Array, Any], Any]
BatchFn = Callable[[Any, Array, Array, Array], Any]

# The bound, because position arithmetic in uint32 is exact up to it.
MAX_RESIDENT = 2**23
_SHUFFLE_ROUNDS = 32
# Rounds that XLA may fuse into one loop. The compile time of LLVM (in JAX 0.12)
# is exponential in them if the sizes differ by replica: 14 take 20 seconds.
_FUSED_ROUNDS = 4
# Shares of a class below this are drawn as logarithms, because they underflow.
_TAIL = 1e-12


class Sampler(NamedTuple):
  """A function that assigns examples to replicas.

  Attributes:
    rows: `(step, replica) -> int32[batch_size]`, the rows of a replica's batch.
    num_replicas: N.
    num_examples: number of examples in the data, n.
  """

  rows: Callable[[Array, Array], Array]
  num_replicas: int
  num_examples: int


def shared(
  num_examples: int, num_replicas: int, batch_size: int, *, seed: int
) -> Sampler:
  """Sample from a common pool: every replica draws from all examples.

  The pool is shuffled again for every epoch and dealt out in turn, so that in
  an epoch all replicas together see every example once.

  Args:
    num_examples: n, in 1 .. 2^23.
    num_replicas: N, >= 1.
    batch_size: examples per replica and step, >= 1.
    seed: seed of the shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if an argument is out of its range, or the batch of all replicas
      is larger than the data set.
  """
  _check_sizes(num_examples, num_replicas, batch_size)
  seed = check_seed('seed', seed)
  global_batch = check_global_batch(num_examples, num_replicas, batch_size)

  def rows(step: Array, replica: Array) -> Array:
    row = replica * batch_size + jnp.arange(batch_size)
    epoch, position = _locate(step, global_batch, row, num_examples)
    return shuffled_index(seed, epoch, position, num_examples)

  return Sampler(rows, num_replicas, num_examples)


def sharded(
  num_examples: int, num_replicas: int, batch_size: int, *, seed: int
) -> Sampler:
  """Sample from disjoint shards, into which the examples are dealt at random.

  Sizes of shards differ by one at most. A replica shuffles its shard again each
  time it has seen all of it.

  Args:
    num_examples: n, in 1 .. 2^23.
    num_replicas: N, >= 1.
    batch_size: examples per replica and step, at most the smallest shard.
    seed: seed of the shards and shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if an argument is out of its range, or a batch is larger than
      the smallest shard.
  """
  _check_sizes(num_examples, num_replicas, batch_size)
  seed = check_seed('seed', seed)
  shards = random_shards(num_examples, num_replicas, seed)
  return from_shards(num_examples, shards, batch_size, seed=seed)


def random_shards(
  num_examples: int, num_replicas: int, seed: int
) -> list[np.ndarray]:
  """Deal out the rows 0 .. n - 1 at random, in N parts.

  Args:
    num_examples: n, >= 1.
    num_replicas: N, >= 1.
    seed: seed of the parts.

  Returns:
    int64[n_i] for each replica. The sizes n_i differ by one at most.
  """
  order = np.random.default_rng(seed).permutation(num_examples)
  return np.array_split(order, num_replicas)


def dirichlet(
  labels: np.ndarray,
  num_replicas: int,
  batch_size: int,
  *,
  alpha: float,
  seed: int,
) -> Sampler:
  """Sample from disjoint shards with label skew: the replicas' f_i differ.

  Replica i draws shares of the classes q_i from Dirichlet(alpha p), where p are
  the shares in all examples. It fills a shard of n / N examples by q_i from the
  examples left. Small alpha gives skewed shards: at 1e-300 a shard has one
  class until no example of it is left, then the next. At 1e300 all shards have
  the shares p.

  Args:
    labels: int[n], the class of every example.
    num_replicas: N, >= 1.
    batch_size: examples per replica and step, at most the smallest shard.
    alpha: concentration, > 0 and finite.
    seed: seed of the shards and shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if an argument is out of its range, or a batch is larger than a
      shard.

  Reference:
    Hsu, Qi, Brown 2019, Measuring the effects of non-identical data
    distribution for federated visual classification (arXiv 1909.06335).
  """
  labels = check_labels(labels)
  _check_sizes(len(labels), num_replicas, batch_size)
  shards = dirichlet_shards(labels, num_replicas, alpha=alpha, seed=seed)
  return from_shards(len(labels), shards, batch_size, seed=seed)


def dirichlet_shards(
  labels: np.ndarray, num_replicas: int, *, alpha: float, seed: int
) -> list[np.ndarray]:
  """Return the rows of each replica in `dirichlet`.

  Args:
    labels: int[n], the class of every example.
    num_replicas: N, >= 1.
    alpha: concentration, > 0 and finite.
    seed: seed of the shards, in 0 .. 2^32 - 1.

  Returns:
    int64[n_i] for each replica. The sizes n_i differ by one at most.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> [rows.tolist() for rows in dirichlet_shards(
    ...   np.array([0, 0, 1, 1]), 2, alpha=1e-300, seed=0)]
    [[0, 1], [2, 3]]
  """
  labels = check_labels(labels)
  num_replicas = check_positive_int('num_replicas', num_replicas)
  alpha = check_positive('alpha', alpha)
  rng = np.random.default_rng(check_seed('seed', seed))
  tails = np.random.default_rng([seed, 1])
  classes, counts = np.unique(labels, return_counts=True)
  pools = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
  taken = np.zeros(len(classes), int)
  shards = []
  for size in _split_sizes(len(labels), num_replicas):
    wish = _log_dirichlet(alpha, counts / counts.sum(), rng, tails)
    quota = np.zeros(len(classes), int)
    while (missing := size - quota.sum()) > 0:
      left = counts - taken - quota
      open_wish = np.where(left > 0, wish, -np.inf)
      share = np.exp(open_wish - open_wish.max())
      draw = rng.multinomial(missing, share / share.sum())
      quota += np.minimum(draw, left)
    picked = [
      pool[t : t + q] for pool, t, q in zip(pools, taken, quota, strict=True)
    ]
    taken += quota
    shards.append(np.concatenate(picked))
  return shards


def check_labels(labels: Any) -> np.ndarray:
  """Return labels as an array.

  Args:
    labels: one number or text for each example.

  Raises:
    ValueError: if they are something else, such as one-hot rows.
  """
  try:
    listed = np.asarray(labels)
  except ValueError:  # lists of different lengths
    listed = np.asarray(None)
  is_known = listed.dtype.kind in 'biufUS' and (listed == listed).all()
  if listed.ndim != 1 or not is_known:
    raise ValueError(
      'labels must be one number or text for each example, such as int[n], got '
      f'{describe(labels)}; of one-hot rows take labels.argmax(-1)'
    )
  return listed


def _log_dirichlet(
  alpha: float,
  shares: np.ndarray,
  rng: np.random.Generator,
  tails: np.random.Generator,
) -> np.ndarray:
  """Draw log q of q ~ Dirichlet(alpha p), because q may underflow.

  Below a small b, a share has the distribution function (q / b)^a, a = alpha p.
  A share drawn there is replaced by log q = log b + log(U) / a.

  Args:
    alpha: concentration, > 0.
    shares: p, the shares in all examples.
    rng: generator of the shares.
    tails: generator of U; separate, so that the number of draws from `rng` does
      not depend on which shares underflow.
  """
  # Clipped, because beyond these bounds logarithms overflow and shards agree.
  a = np.clip(alpha, 1e-290, 1e18) * shares
  drawn = rng.dirichlet(a)
  small = np.log(_TAIL) + np.log1p(-tails.random(len(a))) / a
  return np.where(drawn < _TAIL, small, np.log(np.maximum(drawn, _TAIL)))


def from_shards(
  num_examples: int,
  shards: Sequence[np.ndarray],
  batch_size: int,
  *,
  seed: int,
) -> Sampler:
  """Sample from given shards: replica i draws from the rows `shards[i]`.

  Args:
    num_examples: n, in 1 .. 2^23.
    shards: N arrays of rows, int[n_i], of any lengths, in 0 .. n - 1.
    batch_size: examples per replica and step, at most the smallest shard.
    seed: seed of the shuffles, in 0 .. 2^32 - 1.

  Raises:
    ValueError: if a batch is larger than a shard, or a row is not an integer in
      0 .. n - 1.
  """
  sizes = _sizes(shards)
  _check_sizes(num_examples, len(sizes), batch_size)
  seed = check_seed('seed', seed)
  check_shard_sizes(sizes, batch_size)
  table = np.zeros((len(shards), sizes.max()), np.int32)
  for i, shard in enumerate(map(np.asarray, shards)):
    check_shard(shard, i, num_examples)
    table[i, : len(shard)] = shard

  def rows(step: Array, replica: Array) -> Array:
    size = jnp.asarray(sizes, jnp.uint32)[replica]
    row = jnp.arange(batch_size)
    epoch, position = _locate(step, batch_size, row, size)
    # One shuffle per (replica, epoch), so that replicas differ.
    stream = epoch * np.uint32(len(shards)) + replica.astype(jnp.uint32)
    index = shuffled_index(seed, stream, position, size)
    return jnp.asarray(table)[replica, index]

  return Sampler(rows, len(shards), num_examples)


def _sizes(shards: Any) -> np.ndarray:
  """Return the numbers of rows of the shards."""
  try:
    return np.array([len(shards[i]) for i in range(len(shards))])
  except (TypeError, LookupError):
    raise ValueError(
      'shards expects one list of rows for each replica, int[n], got '
      f'{describe(shards)}'
    ) from None


def shuffled_index(
  seed: int, stream: Array, position: Array, size: Array | int
) -> Array:
  """Map a position through a pseudorandom permutation of 0 .. size - 1.

  Each (seed, stream) has its own permutation. It is computed for one element
  without a table, by the swap-or-not shuffle: in each round x and K - x form a
  pair, and a hash of the pair decides whether they are swapped.

  Args:
    seed: seed of the permutations, a static integer.
    stream: uint32, number of the shuffle, such as the epoch; broadcast against
      `position`.
    position: uint32[...], in 0 .. size - 1.
    size: number of examples, at most 2^23.

  Returns:
    int32[...], in 0 .. size - 1.

  Reference:
    Hoang, Morris, Rogaway 2012, An enciphering scheme based on a card shuffle
    (arXiv 1208.1176), section 3.
  """
  words = shuffle_words(seed)
  size = jnp.asarray(size, jnp.uint32)
  x = jnp.asarray(position, jnp.uint32)
  for i, (pivot_word, swap_word) in enumerate(words):
    if i and i % _FUSED_ROUNDS == 0:
      x = lax.optimization_barrier(x)
    x = _swap_or_not(x, stream, size, pivot_word, swap_word)
  return x.astype(jnp.int32)


def shuffle_words(seed: int) -> np.ndarray:
  """Return the random words of a permutation, uint32[rounds, 2].

  Args:
    seed: seed of the permutation.
  """
  return np.random.default_rng(seed).integers(
    2**32, size=(_SHUFFLE_ROUNDS, 2), dtype=np.uint32
  )


# Compiled as a call, because one trace then serves all rounds.
@jax.jit
def _swap_or_not(
  x: Array, stream: Array, size: Array, pivot_word: Array, swap_word: Array
) -> Array:
  """Swap the pairs (x, K - x) that the round of a shuffle chooses."""
  pivot = _hash(stream ^ pivot_word) % size
  partner = pivot + jnp.where(pivot < x, size, np.uint32(0)) - x
  swap = _hash(jnp.maximum(x, partner) ^ _hash(stream ^ swap_word)) & 1
  return jnp.where(swap == 1, partner, x)


def _hash(x: Array) -> Array:
  """Mix the bits of uint32 (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _locate(
  step: Array, per_step: int, row: Array, size: Array | int
) -> tuple[Array, Array]:
  """Return (epoch, position) = divmod(step * per_step + row, size).

  By long division in base 256, because the product overflows. It is exact in
  uint32 if `per_step` and `size` are at most 2^23.
  """
  size = jnp.asarray(size, jnp.uint32)
  step = step.astype(jnp.uint32)
  epoch = remainder = jnp.zeros((), jnp.uint32)
  for place in (24, 16, 8, 0):
    digit = (step >> place) & 0xFF
    value = remainder * 256 + digit * np.uint32(per_step)
    epoch = epoch * 256 + value // size
    remainder = value % size
  position = remainder + row.astype(jnp.uint32)
  return epoch + position // size, position % size


def _check_sizes(num_examples: int, num_replicas: int, batch_size: int) -> None:
  check_positive_int('num_replicas', num_replicas)
  check_positive_int('batch_size', batch_size)
  if not 1 <= check_step('num_examples', num_examples) <= MAX_RESIDENT:
    raise ValueError(
      f'data on the device must have 1 to {MAX_RESIDENT} examples, got '
      f'{num_examples}; read larger data by pr.pipeline(source, ...)'
    )


def check_global_batch(
  num_examples: int, num_replicas: int, batch_size: int
) -> int:
  """Return the size of the batch of all replicas.

  Args:
    num_examples: n.
    num_replicas: N.
    batch_size: examples per replica and step.

  Raises:
    ValueError: if it is larger than the data set.
  """
  global_batch = num_replicas * batch_size
  if global_batch > num_examples:
    raise ValueError(
      f'the batch of all replicas, {num_replicas} x {batch_size} = '
      f'{global_batch}, is larger than the {num_examples} examples; use '
      'smaller batches or fewer replicas'
    )
  return global_batch


def check_shard_sizes(sizes: np.ndarray, batch_size: int) -> None:
  """Raise ValueError if a batch is larger than the smallest shard."""
  smallest = int(sizes.argmin())
  if sizes[smallest] < batch_size:
    raise ValueError(
      f'the batch of {batch_size} is larger than the shard of replica '
      f'{smallest}, {sizes[smallest]} examples; use a smaller batch or fewer '
      'replicas'
    )


def check_shard(shard: np.ndarray, replica: int, num_examples: int) -> None:
  """Check the rows of a replica.

  Args:
    shard: should be integers `[n_i]` in 0 .. n - 1.
    replica: its number, for the message.
    num_examples: n.

  Raises:
    ValueError: if they are not.
  """
  if shard.ndim != 1:
    raise ValueError(
      f'shards expects one list of rows for each replica, int[n], got '
      f'{describe(shard)} for replica {replica}'
    )
  is_int = np.issubdtype(shard.dtype, np.integer)
  if not is_int or shard.min() < 0 or shard.max() >= num_examples:
    raise ValueError(
      f'shards expects integer rows in 0 .. {num_examples - 1}, got '
      f'{shard.dtype} {shard.min()} .. {shard.max()} for replica {replica}'
    )


def _split_sizes(total: int, parts: int) -> list[int]:
  return [len(part) for part in np.array_split(np.arange(total), parts)]
