"""WITH WHOM: mixings of the replicas, x_i <- sum_j W_ij x_j.

A mixing knows three things of itself: how to apply W inside the mapped program,
W as a NumPy matrix, and what one application sends. Some have several W, which
take turns or are drawn by chance. The graphs with names are in `graphs.py`.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import NamedTuple, Protocol

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Traffic,
  over_block,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.matrices import check_stochastic, links, of_size, permutations

# One replica's codes -> its tree of floats.
Decode = Callable[[ArrayTree], ArrayTree]


class Message(NamedTuple):
  """What one replica sends when a payload is mixed once.

  Where they do not all send the same, what the one that sends most does.
  """

  bytes_sent: float
  latencies: int
  tier: str


class Apply(Protocol):
  """x_i <- sum_j W_ij x_j on a block, leaves `[V, ...]` of floats.

  With `decode` the tree holds codes instead, of any dtype, which travel as they
  are: x_i <- sum_j W_ij decode(code_j).
  """

  def __call__(
    self, tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree: ...


class Mixing(NamedTuple):
  """A linear combination of the replicas.

  Attributes:
    apply: applies W; of the context it reads `replica`, and where there are
      several W `shared_key`, or `round`.
    matrices: `num_replicas -> float64[K, N, N]`, the W that `apply` uses;
      raises `ValueError` where the mixing does not fit that many replicas.
    message: `(payload_bytes, num_replicas) -> Message`, replicas counted as
      machines.
    coded_message: the same for codes, which cannot be added up on the way.
    random: whether each round draws one of the W, all equally likely; otherwise
      they take turns.
  """

  apply: Apply
  matrices: Callable[[int], np.ndarray]
  message: Callable[[float, int], Message]
  coded_message: Callable[[float, int], Message]
  random: bool = False


def mean() -> Mixing:
  """The mean of all replicas: W = 11'/N.

  The message is a ring all-reduce: 2 (N - 1) / N payloads in 2 (N - 1)
  latencies. Codes are gathered: N - 1 payloads in N - 1 latencies.
  """

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if decode is None:
      return collectives.replica_mean(tree)
    n = collectives.num_replicas(tree)
    return _combine_codes_alike(np.full(n, 1 / n), tree, context, decode)

  def matrices(num_replicas: int) -> np.ndarray:
    return np.full((1, num_replicas, num_replicas), 1 / num_replicas)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_reduce(payload_bytes, num_replicas, 'global')

  def coded_message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, num_replicas, 'global')

  return Mixing(apply, matrices, message, coded_message)


def weighted_mean(weights: Sequence[float] | np.ndarray) -> Mixing:
  """A weighted mean of all replicas: W = 1 w' / sum w.

  Every row of W is w' / sum w: all replicas agree afterwards, on a point that
  is not their mean unless the weights are equal. The message is a ring
  all-reduce of the weighted models, as that of `mean`.

  Args:
    weights: w, float[N], positive; only their ratios matter.

  Raises:
    ValueError: if a weight is not a finite number > 0; from `matrices`, if
      there is not one for each replica.

  Example:
    >>> weighted_mean([1, 3]).matrices(2)[0].tolist()
    [[0.25, 0.75], [0.25, 0.75]]
  """
  given = np.array(weights, np.float64)
  positive = np.isfinite(given) & (given > 0)
  if given.ndim != 1 or not given.size or not positive.all():
    raise ValueError(
      f'weights expects one number > 0 for each replica, got {weights!r}'
    )
  row = given / given.sum()

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if decode is not None:
      return _combine_codes_alike(row, tree, context, decode)
    mine = jnp.asarray(row)[context.replica]
    weighted = jax.tree.map(
      lambda x: over_block(operator.mul)(mine.astype(x.dtype), x), tree
    )
    return collectives.replica_sum(weighted)

  def matrices(num_replicas: int) -> np.ndarray:
    if len(row) != num_replicas:
      raise ValueError(
        f'weights must have one number for each of the {num_replicas} '
        f'replicas, got {len(row)}'
      )
    return np.tile(row, (1, num_replicas, 1))

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_reduce(payload_bytes, num_replicas, 'global')

  def coded_message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, num_replicas, 'global')

  return Mixing(apply, matrices, message, coded_message)


def group_mean(size: int) -> Mixing:
  """The mean of each group of `size` consecutive replicas (Hier-AVG's S).

  The message is a ring all-reduce on the links inside a group; that of a group
  of all replicas is that of `mean`.

  Raises:
    ValueError: if `size` is not an integer >= 1; from `matrices`, if it does
      not divide the number of replicas; from `apply`, if it is given codes.
  """
  size = check_positive_int('group_size', size)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    del context
    if decode is not None:
      raise ValueError('group_mean does not carry codes; use pr.mean()')
    return collectives.replica_group_mean(tree, size)

  def matrices(num_replicas: int) -> np.ndarray:
    if num_replicas % size:
      raise ValueError(
        f'group_size must divide the {num_replicas} replicas, got {size}; '
        f'use one of {_divisors(num_replicas)}'
      )
    group = np.full((size, size), 1 / size)
    return np.kron(np.eye(num_replicas // size), group)[None]

  def message(payload_bytes: float, num_replicas: int) -> Message:
    tier = 'global' if size == num_replicas else 'group'
    return _all_reduce(payload_bytes, size, tier)

  return Mixing(apply, matrices, message, message)


def dense(matrix: np.ndarray) -> Mixing:
  """Any matrix W, by gathering all replicas.

  The message is a ring all-gather: N - 1 payloads in N - 1 latencies, whatever
  the zeros of W; `graphs.graph` sends what W needs. Only a doubly stochastic W
  keeps the mean of the replicas.

  Args:
    matrix: float[N, N]; replica i becomes sum_j matrix[i, j] x_j.

  Raises:
    ValueError: if the matrix is not square, not finite, or neither its rows nor
      its columns sum to one; from `matrices`, if it is not of the number of
      replicas.
  """
  weights = check_stochastic(matrix)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if decode is not None:
      return _combine_codes(jnp.asarray(weights)[context.replica], tree, decode)

    def combine(x: Array) -> Array:
      rows = jnp.asarray(weights, x.dtype)[context.replica]
      gathered = collectives.all_gather(x)
      return jnp.tensordot(rows, gathered, 1, precision=lax.Precision.HIGHEST)

    return jax.tree.map(combine, tree)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, num_replicas, 'neighbour')

  return Mixing(apply, of_size(weights), message, message)


def sparse(
  matrices: Callable[[int], np.ndarray], *, random: bool = False
) -> Mixing:
  """Matrices W applied by sending along their non-zero entries alone.

  A round is at most as many messages as a replica has neighbours: the entries
  of W besides the diagonal are a bipartite graph of receivers and senders,
  which König's theorem splits into as many partial permutations as its largest
  degree. Several W are a switch over the static ones.

  Args:
    matrices: `num_replicas -> float64[K, N, N]`.
    random: whether each round draws one of the K, or they take turns.
  """

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    choices = matrices(collectives.num_replicas(tree))
    branches = [
      functools.partial(_send_and_add, weights, context.replica, decode)
      for weights in choices
    ]
    if len(branches) == 1:
      return branches[0](tree)
    if random:
      # int32 whether or not x64 is enabled, or the draws would differ.
      turn: Array | int = jax.random.randint(
        context.shared_key, (), 0, len(branches), jnp.int32
      )
    else:
      turn = context.round % len(branches)
    return lax.switch(turn, branches, tree)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    sent = links(matrices(num_replicas))
    most_sent, most_received = (int(sent.sum(axis).max()) for axis in (1, 2))
    messages = max(most_sent, most_received)
    return Message(most_sent * payload_bytes, messages, 'neighbour')

  return Mixing(apply, matrices, message, message, random)


def _send_and_add(
  weights: np.ndarray,
  replica: Array,
  decode: Decode | None,
  tree: ArrayTree,
) -> ArrayTree:
  """sum_j W_ij x_j of this block, one message after the other."""
  unpack = over_block(decode) if decode is not None else lambda tree: tree
  index = np.arange(len(weights))

  def weighted(tree: ArrayTree, source: np.ndarray) -> ArrayTree:
    present = np.where(source < 0, 0.0, weights[index, source])
    if len(set(present.tolist())) == 1:
      scale = functools.partial(operator.mul, float(present[0]))
      return jax.tree.map(scale, unpack(tree))
    mine = jnp.asarray(present)[replica]

    def scale_own(x: Array) -> Array:
      scaled = over_block(operator.mul)(mine.astype(x.dtype), x)
      # What nobody sent need not be finite once decoded.
      return over_block(jnp.where)(mine != 0, scaled, jnp.zeros_like(x))

    return jax.tree.map(scale_own, unpack(tree))

  terms = [
    weighted(collectives.permute(tree, source), source)
    for source in permutations(weights)
  ]
  if weights.diagonal().any() or not terms:
    terms = [weighted(tree, index), *terms]
  return jax.tree.map(lambda *xs: functools.reduce(operator.add, xs), *terms)


def _combine_codes(rows: Array, codes: ArrayTree, decode: Decode) -> ArrayTree:
  """`rows[r] . decoded` with all replicas' codes, decoded one by one."""
  gathered = collectives.all_gather(codes)

  def code(j: Array | int) -> ArrayTree:
    return jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, j, keepdims=False), gathered
    )

  def add(j: Array, total: ArrayTree) -> ArrayTree:
    def weighted(x: Array) -> Array:
      return jax.vmap(lambda w: w * x)(rows[:, j].astype(x.dtype))

    return jax.tree.map(lambda y, x: y + weighted(x), total, decode(code(j)))

  zero = jax.tree.map(
    lambda x: jnp.zeros((rows.shape[0], *x.shape), x.dtype),
    jax.eval_shape(lambda: decode(code(0))),
  )
  return lax.fori_loop(0, rows.shape[1], add, zero)


def _combine_codes_alike(
  row: np.ndarray, codes: ArrayTree, context: Context, decode: Decode
) -> ArrayTree:
  """`row . decoded`, the same on all replicas of the block."""
  once = _combine_codes(jnp.asarray(row[None]), codes, decode)
  block = context.replica.shape[0]
  return jax.tree.map(
    lambda x: jnp.broadcast_to(x, (block, *x.shape[1:])), once
  )


def traffic(
  mixing: Mixing,
  payload: float,
  num_replicas: int,
  steps: np.ndarray,
  *,
  coded: bool = False,
) -> Traffic:
  """Returns what mixing a payload at each of the steps sends.

  Args:
    mixing: with whom.
    payload: bytes of one replica's message.
    num_replicas: N.
    steps: the steps, an integer array.
    coded: whether the payload is codes, which are not added up on the way.
  """
  fires = np.ones(len(steps), bool)
  waits = mixing.matrices(num_replicas) != 0
  message = mixing.coded_message if coded else mixing.message
  sent = message(payload, num_replicas)
  return Traffic(fires, *sent, waits, mixing.random)


def _all_reduce(payload: float, size: int, tier: str) -> Message:
  return Message(2 * (size - 1) / size * payload, 2 * (size - 1), tier)


def _all_gather(payload: float, size: int, tier: str) -> Message:
  return Message((size - 1) * payload, size - 1, tier)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
