"""WITH WHOM: mixings of the replicas, x_i <- sum_j W_ij x_j.

A mixing is three functions: one applies W inside the mapped program, one
returns W as a sparse matrix, and one counts the bytes sent. A mixing may have
several W, which alternate or are drawn at random. `graphs` has mixings along
the edges of a graph.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Senders,
  Traffic,
  over_block,
)
from prsgd_jax.checks import check_positive_int
from prsgd_jax.mixing import collectives, gathered
from prsgd_jax.mixing.decoding import (
  Decode,
  combine_codes,
  combine_codes_alike,
  mean_codes,
  scaled_rows,
)
from prsgd_jax.mixing.matrices import (
  Weights,
  check_stochastic,
  degrees,
  entries,
  from_groups,
  listed,
  of_size,
  permutations,
  senders,
)

if TYPE_CHECKING:
  from scipy.sparse import csr_array

# Number of matrices whose links the ledger caches.
KEPT = 1024


class Message(NamedTuple):
  """Traffic of one replica when a payload is mixed once.

  If several W alternate or links are random, the bytes are the mean or the
  expectation for the replica that sends most, and the latencies are the mean or
  the expectation of the longest chain of messages in a round.
  """

  bytes_sent: float
  latencies: float
  tier: str


class Apply(Protocol):
  """Compute x_i <- sum_j W_ij x_j on a block, floating leaves `[V, ...]`.

  With `decode` the tree holds codes of any dtype. Replicas send the codes:
  x_i <- sum_j W_ij decode(code_j).
  """

  def __call__(
    self, tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree: ...


class Mixing(NamedTuple):
  """A linear combination of the replicas.

  Attributes:
    apply: the function that applies W. It reads `replica` of the context, and
      `shared_key` or `round` if there are several W.
    weights: `num_replicas -> Weights`, the W that `apply` uses, as lazily made
      sparse matrices. It raises `ValueError` if the mixing does not fit this
      number of replicas.
    message: `(payload_bytes, num_replicas) -> Message`, with each replica
      counted as one machine.
    coded_message: `(payload_bytes, num_replicas) -> Message` for codes, which
      cannot be summed on the way.
    random: whether each round draws one of the W; otherwise they alternate.
    averages: whether W is a mean of all replicas, or of each group. Without
      the replicas that are absent from a round, a mean is over those present;
      on a graph, the links of an absent replica are down.
  """

  apply: Apply
  weights: Callable[[int], Weights]
  message: Callable[[float, int], Message]
  coded_message: Callable[[float, int], Message]
  random: bool = False
  averages: bool = False

  def matrices(self, num_replicas: int) -> np.ndarray:
    """Return all W, float64[K, N, N], in their order of use if not random.

    Raises:
      ValueError: if the mixing does not fit N replicas, or if the W cannot be
        listed.
    """
    return self.weights(num_replicas).dense()


def mean() -> Mixing:
  """Return the mean of all replicas, W = 11'/N.

  The message is a ring all-reduce: 2 (N - 1) / N payloads in 2 (N - 1)
  latencies. Codes are gathered: N - 1 payloads in N - 1 latencies.

  Example:
    >>> mean().matrices(2)[0].tolist()
    [[0.5, 0.5], [0.5, 0.5]]
  """

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if decode is None:
      return collectives.replica_mean(tree)
    n = collectives.num_replicas(tree)
    return combine_codes_alike(np.full(n, 1 / n), tree, context, decode)

  def weights(num_replicas: int) -> Weights:
    return _groups(num_replicas, num_replicas)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_reduce(payload_bytes, num_replicas, 'global')

  def coded_message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, num_replicas, 'global')

  return Mixing(apply, weights, message, coded_message, averages=True)


def weighted_mean(weights: Sequence[float] | np.ndarray) -> Mixing:
  """Return a weighted mean of all replicas, W = 1 w' / sum w.

  All replicas become equal. With unequal weights, the mean of the replicas
  changes. The message is a ring all-reduce of the weighted models, with
  2 (N - 1) / N payloads in 2 (N - 1) latencies.

  Args:
    weights: w, float[N], each > 0. Only their ratios matter.

  Raises:
    ValueError: if a weight is not a finite number > 0; from `Mixing.weights`,
      if the number of weights is not N.

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
      return combine_codes_alike(row, tree, context, decode)
    mine = jnp.asarray(row)[context.replica]
    weighted = jax.tree.map(
      lambda x: over_block(operator.mul)(mine.astype(x.dtype), x), tree
    )
    return collectives.replica_sum(weighted)

  def of_number(num_replicas: int) -> Weights:
    from scipy.sparse import csr_array

    if len(row) != num_replicas:
      raise ValueError(
        f'weights must have one number for each of the {num_replicas} '
        f'replicas, got {len(row)}'
      )
    return Weights(
      lambda turn: csr_array(np.tile(row, (num_replicas, 1))),
      sums=(True, np.allclose(num_replicas * row, 1, rtol=0, atol=1e-6)),
      waits=num_replicas,
    )

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_reduce(payload_bytes, num_replicas, 'global')

  def coded_message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, num_replicas, 'global')

  return Mixing(apply, of_number, message, coded_message, averages=True)


def group_mean(size: int) -> Mixing:
  """Return the mean of each group of `size` consecutive replicas.

  The message is a ring all-reduce on the links inside a group, or on global
  links if the group is all replicas. Codes are gathered inside a group: S - 1
  payloads in S - 1 latencies.

  Args:
    size: S of Hier-AVG, replicas in a group, >= 1. It must divide N.

  Raises:
    ValueError: if `size` is not an integer >= 1; from `Mixing.weights`, if it
      does not divide the number of replicas.

  Example:
    >>> group_mean(2).matrices(4)[0].tolist()[0]
    [0.5, 0.5, 0.0, 0.0]
  """
  size = check_positive_int('group_size', size)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if decode is None:
      return collectives.replica_group_mean(tree, size)
    return mean_codes(tree, size, context, decode)

  def weights(num_replicas: int) -> Weights:
    if num_replicas % size:
      raise ValueError(
        f'group_size must divide the {num_replicas} replicas, got {size}; '
        f'use one of {_divisors(num_replicas)}'
      )
    return _groups(num_replicas, size)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_reduce(payload_bytes, size, _tier(size, num_replicas))

  def coded_message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, size, _tier(size, num_replicas))

  return Mixing(apply, weights, message, coded_message, averages=True)


def dense(matrix: np.ndarray) -> Mixing:
  """Return the mixing by any matrix W, which gathers all replicas.

  The message is a ring all-gather: N - 1 payloads in N - 1 latencies, even if W
  has zeros. `graphs.graph` sends only along the nonzero entries. Only a doubly
  stochastic W keeps the mean of the replicas.

  Args:
    matrix: W, float[N, N]; replica i becomes sum_j matrix[i, j] x_j.

  Raises:
    ValueError: if the matrix is not square or not finite, or if neither its
      rows nor its columns sum to one; from `Mixing.weights`, if the matrix is
      not [N, N].

  Example:
    >>> dense([[0.75, 0.25], [0.25, 0.75]]).matrices(2)[0].tolist()
    [[0.75, 0.25], [0.25, 0.75]]
  """
  weights = check_stochastic(matrix)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if decode is not None:
      return combine_codes(jnp.asarray(weights)[context.replica], tree, decode)

    rows = jnp.asarray(weights)[context.replica]
    all_positive = weights.all()
    combine = gathered.multiply_rows if all_positive else gathered.combine_rows
    return jax.tree.map(
      functools.partial(combine, rows), collectives.all_gather(tree)
    )

  def message(payload_bytes: float, num_replicas: int) -> Message:
    return _all_gather(payload_bytes, num_replicas, 'neighbor')

  return Mixing(apply, of_size(weights), message, message)


def sparse(
  weights: Callable[[int], 'Weights | np.ndarray | Sequence[csr_array]'],
  *,
  random: bool = False,
) -> Mixing:
  """Return the mixing by matrices W that sends only along nonzero entries.

  The entries of W off the diagonal are a bipartite graph of receivers and
  senders. König's theorem splits it into partial permutations, as many as its
  largest degree. So a round needs no more messages than a replica has
  neighbors. Several W compile to a switch over static ones.

  Args:
    weights: `num_replicas -> Weights` with a `number`; or `num_replicas -> W`,
      such as float64[K, N, N].
    random: whether each round draws one of the K matrices. Otherwise they
      alternate.
  """

  @functools.cache
  def made(num_replicas: int) -> Weights:
    found = weights(num_replicas)
    return found if isinstance(found, Weights) else listed(found)

  def apply(
    tree: ArrayTree, context: Context, decode: Decode | None = None
  ) -> ArrayTree:
    if not jax.tree.leaves(tree):
      return tree
    branches = [
      functools.partial(_add_links, matrix, context.replica, decode)
      for matrix in made(collectives.num_replicas(tree)).each()
    ]
    if len(branches) == 1:
      return branches[0](tree)
    turn: Array | int = context.round % len(branches)
    if random:
      turn = draw_turn(context.shared_key, len(branches))
    return lax.switch(turn, branches, tree)

  @functools.cache
  def of_round(num_replicas: int) -> tuple[float, float]:
    """Return (models sent by a replica, messages), means over the W."""
    found = [degrees(matrix) for matrix in made(num_replicas).each()]
    sent = np.mean([out for out, _ in found], axis=0)
    messages = np.mean([max(map(max, both)) for both in found])
    return float(sent.max()), float(messages)

  def message(payload_bytes: float, num_replicas: int) -> Message:
    sent, messages = of_round(num_replicas)
    return Message(sent * payload_bytes, messages, 'neighbor')

  return Mixing(apply, made, message, message, random)


def draw_turn(key: Array, count: int, shape: tuple[int, ...] = ()) -> Array:
  """Return a uniform draw from 0 .. count - 1."""
  # int32 always, because the draws would otherwise differ under x64.
  return jax.random.randint(key, shape, 0, count, jnp.int32)


def _add_links(
  weights: 'csr_array',
  replica: Array,
  decode: Decode | None,
  tree: ArrayTree,
) -> ArrayTree:
  """Return sum_j W_ij x_j of this block."""
  if gathered.is_shorter(weights, replica.shape[0]):
    return gathered.combine(weights, replica, decode, tree)
  return _send_and_add(weights, replica, decode, tree)


def _send_and_add(
  weights: 'csr_array',
  replica: Array,
  decode: Decode | None,
  tree: ArrayTree,
) -> ArrayTree:
  """Return sum_j W_ij x_j of this block, sending one message at a time."""
  unpack = over_block(decode) if decode is not None else lambda tree: tree

  def weighted(tree: ArrayTree, present: np.ndarray) -> ArrayTree:
    return scaled_rows(unpack(tree), present, replica)

  terms = [
    weighted(collectives.permute(tree, source), entries(weights, source))
    for source in permutations(weights)
  ]
  own = weights.diagonal()
  if own.any() or not terms:
    terms = [weighted(tree, own), *terms]
  return jax.tree.map(lambda *xs: functools.reduce(operator.add, xs), *terms)


def traffic(
  mixing: Mixing,
  payload: float,
  num_replicas: int,
  steps: np.ndarray,
  *,
  coded: bool = False,
) -> Traffic:
  """Return the traffic of mixing a payload at each of the steps.

  Args:
    mixing: the mixing.
    payload: bytes of one replica's values or codes.
    num_replicas: N.
    steps: the steps, an integer array.
    coded: whether the payload is codes, which cannot be summed on the way.
      Default: False.

  Returns:
    The `Traffic`, with `fires` true at each of the steps.

  Example:
    >>> traffic(mean(), 100.0, 4, np.arange(3)).bytes_sent
    150.0
  """
  message = mixing.coded_message if coded else mixing.message
  sent = message(payload, num_replicas)
  return Traffic(np.ones(len(steps), bool), *sent, _waits(mixing, num_replicas))


def _waits(
  mixing: Mixing, num_replicas: int
) -> int | Callable[[int, np.random.Generator], Senders]:
  made = mixing.weights(num_replicas)
  if made.waits is not None:
    return made.waits
  if made.number == 1:
    fixed = made.matrix(0)
    if fixed.nnz == num_replicas**2:
      return num_replicas
    table = senders(fixed)
    return lambda turn, generator: table

  def of(turn: Any) -> Senders:
    return senders(made.matrix(turn))

  number = made.number
  if number is None:
    return lambda turn, generator: of(made.draw_turn(generator))
  kept = functools.lru_cache(KEPT)(of)
  if mixing.random:
    return lambda turn, generator: kept(made.draw_turn(generator))
  return lambda turn, generator: kept(turn % number)


def _groups(num_replicas: int, size: int) -> Weights:
  """Return the W that averages each group of `size` consecutive replicas."""
  return Weights(
    lambda turn: from_groups(np.arange(num_replicas).reshape(-1, size)),
    sums=(True, True),
    waits=size,
  )


def _tier(size: int, num_replicas: int) -> str:
  return 'global' if size == num_replicas else 'group'


def _all_reduce(payload: float, size: int, tier: str) -> Message:
  return Message(2 * (size - 1) / size * payload, 2 * (size - 1), tier)


def _all_gather(payload: float, size: int, tier: str) -> Message:
  return Message((size - 1) * payload, size - 1, tier)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
