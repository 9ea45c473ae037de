"""ROBUST AVERAGES: alternatives to the mean that tolerate bad replicas.

Each is a stage that replaces registers by an aggregate of the replicas. Pass it
to an algorithm as `average=`. A replica whose values are not finite is left
out, and receives the aggregate. The register `dropped` counts how often.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import operator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  over_block,
  select,
)
from prsgd_jax.checks import check_positive, check_positive_int, check_step
from prsgd_jax.mixing import collectives
from prsgd_jax.mixing.mixings import mean, traffic
from prsgd_jax.mixing.payload import payload_bytes
from prsgd_jax.names import PRESENT, names
from prsgd_jax.stages.communication import check_registers, floats_of
from prsgd_jax.stages.presence import presence
from prsgd_jax.stages.scopes import algorithm

# Name of the register that counts the replicas left out of a robust average.
DROPPED = 'dropped'

# `(values [N, ...], usable bool[N]) -> values [...]`. Values that are not
# usable are 0.
Rule = Callable[[list[Array], Array], list[Array]]


def average_finite(
  what: str | Sequence[str] = 'params',
) -> ReplicaTransformation:
  """Average the replicas whose values are finite.

    x_i <- sum_{j in S} w_j x_j / sum_{j in S} w_j

  S is the set of the replicas that are present and whose registers in `what`
  have neither NaN nor infinity; w is the register `weight`, or 1. All replicas
  receive the mean. If S is empty, nothing changes. The message is that of a
  mean.

  A replica whose optimizer has non-finite buffers is left out forever, because
  its next step is not finite. Average the buffers, too, or restart them.

  Args:
    what: the names of the registers to average. Default: 'params'.

  Raises:
    ValueError: if `what` is not names of registers.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(
    ...     optax.sgd(0.1, momentum=0.9), period=8,
    ...     average=pr.stages.average_finite(('params', 'opt_state')))
  """

  def combine(
    values: list[Array], usable: Array, weight: Array | None
  ) -> list[Array]:
    mass = usable if weight is None else jnp.where(usable, weight, 0)
    mass = mass.astype(jnp.result_type(float))
    total = collectives.replica_sum(mass)
    safe = jnp.where(total != 0, total, 1)

    def average(x: Array) -> Array:
      own = over_block(operator.mul)(mass.astype(x.dtype), x)
      # Selected, because 0 times NaN is NaN.
      sums = collectives.replica_sum(select(usable, own, jnp.zeros_like(x)))
      return over_block(operator.truediv)(sums, safe.astype(x.dtype))

    return [average(x) for x in values]

  return _average('average_finite', what, combine, gathers=False)


def average_median(
  what: str | Sequence[str] = 'params',
) -> ReplicaTransformation:
  """Replace the replicas by their coordinate-wise median.

  With an even number of replicas it is the mean of the two middle values. It
  tolerates any values on fewer than half of the replicas. A replica that is
  absent, not finite, or has a `weight` of 0 is left out; other weights are
  ignored. The replicas gather the values of all, N - 1 payloads in N - 1
  latencies.

  Args:
    what: the names of the registers to aggregate. Default: 'params'.

  Raises:
    ValueError: if `what` is not names of registers.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diloco(
    ...     optax.adamw(1e-3), period=30, average=pr.stages.average_median())

  Reference:
    Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-robust distributed
    learning: towards optimal statistical rates (arXiv 1803.01498), Algorithm 1,
    which aggregates gradients.
  """

  def middle(x: Array, usable: Array) -> Array:
    ordered, count = _ordered(x, usable), usable.sum()
    below, above = jnp.maximum(count - 1, 0) // 2, count // 2
    at = functools.partial(lax.dynamic_index_in_dim, ordered, keepdims=False)
    return (at(below) + at(above)) / 2

  return _gathered(
    'average_median', what, lambda xs, usable: [middle(x, usable) for x in xs]
  )


def average_trimmed(
  trim: int, what: str | Sequence[str] = 'params'
) -> ReplicaTransformation:
  """Replace the replicas by their coordinate-wise trimmed mean.

  In each coordinate, the b smallest and the b largest values are left out. It
  tolerates any values on b replicas. A replica that is absent, not finite, or
  has a `weight` of 0 is left out before; other weights are ignored. If n <= 2 b
  replicas are left, it is their median. The replicas gather the values of all.

  Args:
    trim: b, an integer >= 0.
    what: the names of the registers to aggregate. Default: 'params'.

  Raises:
    ValueError: if an argument is out of range; from `init`, if 2 b >= N.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(
    ...     optax.sgd(0.1), period=8, average=pr.stages.average_trimmed(1))

  Reference:
    Yin, Chen, Ramchandran, Bartlett 2018 (arXiv 1803.01498), Algorithm 1 with
    beta = b / N, which aggregates gradients.
  """
  trim = check_step('trim', trim)

  def kept(x: Array, usable: Array) -> Array:
    count = usable.sum()
    cut = jnp.clip((count - 1) // 2, 0, trim)
    index = jnp.arange(x.shape[0])
    inside = (index >= cut) & (index < count - cut)
    own = select(inside, _ordered(x, usable), jnp.zeros_like(x))
    return own.sum(axis=0) / jnp.maximum(count - 2 * cut, 1).astype(x.dtype)

  return _gathered(
    'average_trimmed',
    what,
    lambda xs, usable: [kept(x, usable) for x in xs],
    least=2 * trim + 1,
  )


def average_geometric_median(
  what: str | Sequence[str] = 'params',
  *,
  iterations: int = 8,
  smoothing: float = 1e-6,
) -> ReplicaTransformation:
  """Replace the replicas by their geometric median, approximately.

  It minimizes sum_i |z - x_i| over all leaves together, by Weiszfeld's
  iteration from the mean:

    z <- sum_i b_i x_i / sum_i b_i,  b_i = 1 / max(nu, |z - x_i|)

  It tolerates any values on fewer than half of the replicas, but with few
  iterations only if they are not too far. A replica that is absent, not finite,
  or has a `weight` of 0 is left out; other weights are ignored. The replicas
  gather the values of all.

  Args:
    what: the names of the registers to aggregate. Default: 'params'.
    iterations: number of iterations, >= 1. Default: 8.
    smoothing: nu, > 0. Default: 1e-6.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(
    ...     optax.sgd(0.1), period=8,
    ...     average=pr.stages.average_geometric_median())

  Reference:
    Pillutla, Kakade, Harchaoui 2022, Robust aggregation for federated learning
    (arXiv 1912.13445), smoothed Weiszfeld algorithm. There a client has a
    weight, and the secure aggregation sends means only.
  """
  iterations = check_positive_int('iterations', iterations)
  nu = check_positive('smoothing', smoothing)

  def rule(values: list[Array], usable: Array) -> list[Array]:
    def mean_by(share: Array) -> list[Array]:
      total = jnp.maximum(share.sum(), jnp.finfo(share.dtype).tiny)
      return [
        jnp.tensordot(
          (share / total).astype(x.dtype), x, 1, precision=lax.Precision.HIGHEST
        )
        for x in values
      ]

    def body(_: Array, z: list[Array]) -> list[Array]:
      away = jnp.sqrt(_squares([x - y for x, y in zip(values, z, strict=True)]))
      return mean_by(jnp.where(usable, 1 / jnp.maximum(away, nu), 0))

    start = mean_by(usable.astype(jnp.result_type(float)))
    return lax.fori_loop(0, iterations, body, start)

  return _gathered('average_geometric_median', what, rule)


def average_krum(
  faulty: int, what: str | Sequence[str] = 'params', *, selected: int = 1
) -> ReplicaTransformation:
  """Replace the replicas by one that is near the others (Krum), or by a few.

  Of n replicas, the score of replica i is the sum of its squared distances to
  its n - f - 2 nearest ones. The aggregate is the mean of the m replicas with
  the smallest scores. A replica that is absent, not finite, or has a `weight`
  of 0 is left out; other weights are ignored. The replicas gather the values of
  all.

  Args:
    faulty: f, the number of faulty replicas to tolerate, an integer >= 0.
    what: the names of the registers to aggregate. Default: 'params'.
    selected: m, an integer >= 1; more than 1 is Multi-Krum. Default: 1.

  Raises:
    ValueError: if an argument is out of range; from `init`, if N < 2 f + 3.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_avg(
    ...     optax.sgd(0.1), period=8, average=pr.stages.average_krum(2))

  Reference:
    Blanchard, El Mhamdi, Guerraoui, Stainer 2017, Machine learning with
    adversaries: Byzantine tolerant gradient descent (arXiv 1703.02757), which
    aggregates gradients.
  """
  faulty = check_step('faulty', faulty)
  selected = check_positive_int('selected', selected)

  def rule(values: list[Array], usable: Array) -> list[Array]:
    index, count = jnp.arange(usable.shape[0]), usable.sum()

    def row(i: Array) -> Array:
      squares = _squares([x - x[i] for x in values])
      return jnp.where(usable & (index != i), squares, jnp.inf)

    nearest = jnp.sort(lax.map(row, index), axis=1)
    near = index < jnp.maximum(count - faulty - 2, 1)
    # One replica has no neighbor, and is chosen.
    far = jnp.where(near & jnp.isfinite(nearest), nearest, 0).sum(axis=1)
    rank = jnp.argsort(jnp.argsort(jnp.where(usable, far, jnp.inf)))
    chosen = usable & (rank < selected)
    number = jnp.maximum(chosen.sum(), 1)
    return [
      select(chosen, x, jnp.zeros_like(x)).sum(axis=0) / number.astype(x.dtype)
      for x in values
    ]

  return _gathered('average_krum', what, rule, least=2 * faulty + 3)


def _ordered(x: Array, usable: Array) -> Array:
  """Return `[N, ...]` sorted over the replicas, with unusable ones last."""
  return jnp.sort(select(usable, x, jnp.full_like(x, jnp.inf)), axis=0)


def _squares(values: list[Array]) -> Array:
  """Return float[N], the squared norm of each row, over all leaves."""
  each = [
    jnp.square(jnp.abs(x)).reshape((x.shape[0], -1)).sum(axis=1) for x in values
  ]
  return functools.reduce(operator.add, each)


def _gathered(
  name: str, what: str | Sequence[str], rule: Rule, least: int = 1
) -> ReplicaTransformation:
  """Return the stage that gathers all replicas and applies a rule to them."""

  def combine(
    values: list[Array], usable: Array, weight: Array | None
  ) -> list[Array]:
    del weight
    zeroed = select(usable, values, [jnp.zeros_like(x) for x in values])
    gathered, everyone = collectives.all_gather((zeroed, usable))
    block = usable.shape[0]
    return [
      jnp.broadcast_to(x, (block, *x.shape)) for x in rule(gathered, everyone)
    ]

  return _average(name, what, combine, gathers=True, least=least)


def _average(
  name: str,
  what: str | Sequence[str],
  combine: Callable[[list[Array], Array, Array | None], list[Array]],
  *,
  gathers: bool,
  least: int = 1,
) -> ReplicaTransformation:
  """Return the stage that replaces registers by an aggregate of the replicas.

  Args:
    name: the name of its scope.
    what: the names of the registers.
    combine: `(values, usable, weight) -> values` of a block, `[V, ...]`.
    gathers: whether every replica receives the values of all.
    least: the smallest number of replicas.
  """
  what = check_registers(name, what)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    if num_replicas < least:
      raise ValueError(
        f'{name} needs at least {least} replicas to tolerate as many faults, '
        f'got {num_replicas}; ask for less'
      )
    block = jax.tree.leaves(replica.params)[0].shape[0]
    return replica.set({DROPPED: jnp.zeros(block, jnp.int32)}), ()

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    del context
    values, back = floats_of(replica, what)
    finite, present = all_finite(values), presence(replica)
    if present is None:
      present = jnp.ones(finite.shape, bool)
    weight = replica.get('weight') if replica.has('weight') else None
    usable = present & finite
    if weight is not None:
      usable &= weight != 0
    mixed = combine(values, usable, weight)
    ill, some = collectives.replica_sum(
      ((present & ~finite).astype(jnp.int32), usable.astype(jnp.int32))
    )
    new = back(select(some > 0, mixed, values))
    # Cast, because a sum of int32 is int64 under x64.
    dropped = replica.get(DROPPED) + ill.astype(jnp.int32)
    return replica.set({**new, DROPPED: dropped}), state

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    payload = payload_bytes(floats_of(shapes, what)[0])
    return (traffic(mean(), payload, num_replicas, steps, coded=gathers),)

  def output(replica: Replica, state: ArrayTree) -> Replica:
    del state
    # A replica that is not finite is not averaged in an evaluation, either.
    finite = all_finite(floats_of(replica, ('params',))[0])
    present = presence(replica)
    here = finite if present is None else finite & present
    return replica.set({PRESENT: here})

  found = names(reads=what, writes=(*what, DROPPED), declares=(DROPPED,))
  found = found._replace(uses=found.uses | {PRESENT})
  stage = ReplicaTransformation(update, init, cost, output, found, (True,))
  return algorithm(name, stage)


def all_finite(values: list[Array]) -> Array:
  """Return bool[V], the replicas whose values have no NaN and no infinity.

  Args:
    values: leaves `[V, ...]`.
  """
  each = [jnp.isfinite(x).reshape((x.shape[0], -1)).all(axis=1) for x in values]
  return functools.reduce(jnp.logical_and, each)


def drops_replicas(algorithm: ReplicaTransformation) -> bool:
  """Return whether an algorithm has a robust average that counts.

  Args:
    algorithm: the whole algorithm.
  """
  return any(counts_dropped(name) for name in algorithm.names.declares)


def dropped(registers: Mapping[str, Any]) -> int:
  """Return how often robust averages have left out a replica as not finite.

  Args:
    registers: the registers of a state, `state.registers`, leaves `[N]` or
      `[D, V]`.

  Returns:
    The sum over all rounds of the number of replicas left out.

  Example:
    >>> import numpy as np
    >>> dropped({'k_avg.average_finite.dropped': np.array([3, 3])})
    3
  """
  return sum(
    int(np.ravel(x)[0]) for name, x in registers.items() if counts_dropped(name)
  )


def counts_dropped(name: str) -> bool:
  """Return whether a register is the count of a robust average."""
  return name.rpartition('.')[2] == DROPPED and '.average_' in f'.{name}'
