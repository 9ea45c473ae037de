"""COMMUNICATION: `sync`, the only stage that communicates.

It mixes registers by a matrix W, optionally weighted and encoded, and reports
its traffic to the ledger.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import (
  Array,
  ArrayTree,
  Change,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  over_block,
  select,
)
from prsgd_jax.checks import check_register
from prsgd_jax.mixing.codecs import Compressor, coded_bytes
from prsgd_jax.mixing.codecs.memory import Codec, as_codec
from prsgd_jax.mixing.mixings import Mixing, traffic
from prsgd_jax.mixing.payload import (
  cast_like,
  is_inexact,
  payload_bytes,
  wire_dtype,
)
from prsgd_jax.names import CLOCK, FIELDS, PRESENT, names
from prsgd_jax.stages.local import check_alike
from prsgd_jax.stages.presence import among_present, presence

_UNWEIGHTED = (
  'a codec of differences, or one that counts senders, does not support '
  "weights, got replicas with a register 'weight'; use "
  'pr.codecs.feedback(compressor)'
)


class SyncState(NamedTuple):
  """State of a `sync`.

  Attributes:
    rounds: int32[V], the rounds done so far; () for a mixing with one matrix.
    memory: the memory of the codec.
  """

  rounds: ArrayTree = ()
  memory: ArrayTree = ()


def sync(
  mixing: Mixing,
  what: str | Sequence[str] = 'params',
  *,
  codec: Compressor | Codec | None = None,
  own: str | None = None,
  waits: bool = True,
) -> ReplicaTransformation:
  """Communicate: x_i <- sum_j W_ij x_j, for the registers in `what`.

  All registers travel in one message, with one draw of W. Only floating leaves
  are mixed, in float32 or wider. The result replaces the registers, so after a
  mean all replicas are bit-identical. If the replica has a register `weight`,

    x_i <- sum_j W_ij w_j x_j / sum_j W_ij w_j;  w_i <- sum_j W_ij w_j

  which is FedAvg's weighted mean, and push-sum. A replica that receives no
  weight becomes NaN, so that the failure is visible.

  If the replica has a register `present`, one bool for each replica, a replica
  where it is False sends nothing. A mean is then over the replicas that are
  present, and the absent ones receive it. On a graph, the links of an absent
  replica are down, and their weight is added to the diagonal of W. Assign the
  register with `pr.compute(present=...)`, or inject faults with
  `pr.faults.inject`.

  Args:
    mixing: W, such as `mean()` or `ring()`.
    what: the names of the registers to mix. Default: 'params'.
    codec: a compressor, or a codec with memory. Replicas send its codes, and
      every receiver decodes them. Default: none, the values are sent as floats.
    own: the name of a register that receives this replica's value as the other
      replicas now know it. It requires a codec and exactly one register in
      `what`. Default: none.
    waits: whether a replica waits in modeled time until the senders have
      arrived. The message takes time in either case. Default: True.

  Raises:
    ValueError: if an argument has the wrong type; from `init`, if the registers
      have no floating leaves, or if the mixing does not fit the number of
      replicas, the weights or the codec.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.sync(pr.mixing.group_mean(4), ('params', 'opt_state'))
  """
  if not isinstance(mixing, Mixing):
    raise ValueError(
      f'sync expects a mixing such as pr.mixing.mean(), got {mixing!r}'
    )
  what = check_registers('sync', what)
  codec = None if codec is None else as_codec(codec)
  if own is not None:
    check_register('own', own)
    if codec is None or len(what) > 1:
      raise ValueError(
        f'own={own!r} requires a codec and one register, got codec={codec} and '
        f'{what}'
      )
    if own in (*what, 'weight'):
      raise ValueError(
        f'own={own!r} is already assigned by this sync; use another name'
      )

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    weighted = replica.has('weight')
    if not weighted:
      check_rows(mixing, num_replicas)
    for name in what:
      _check_floats(name, replica)
    if codec is not None:
      _check_codec(codec, mixing, num_replicas, weighted)
      _check_presence(codec, mixing, replica)
    memory = ()
    if codec is not None:
      floats, _ = floats_of(replica, what)
      if not floats:
        raise ValueError(
          f'a codec needs floating leaves to encode, but {what} has none'
        )
      memory = over_block(codec.start)(floats)
    if own is not None:
      if not replica.has(own):
        replica = replica.set({own: replica.get(what[0])})
      check_alike(f'sync(own={own!r})', own, what[0], replica)
    return replica, SyncState(
      _start_rounds(mixing, replica, num_replicas), memory
    )

  def update(
    replica: Replica, state: SyncState, context: Context
  ) -> tuple[Replica, ArrayTree]:
    floats, back = floats_of(replica, what)
    weight = replica.get('weight') if replica.has('weight') else None
    if codec is not None and not codec.weighted and weight is not None:
      # Checked here, too, because the weight may be assigned after `init`.
      raise ValueError(_UNWEIGHTED)
    turn, rounds = _take_turn(context, state.rounds)
    present = presence(replica)
    known: list[Array] = []
    memory = state.memory

    def mix(mass: Array | None, extras: Any) -> tuple[list[Array], Any]:
      nonlocal known, memory
      scaled = floats if mass is None else _scale(floats, mass)
      if codec is None:
        return mixing.apply((scaled, extras), turn)
      mixed, extras, known, memory = _coded(
        mixing, codec, scaled, extras, memory, present, turn
      )
      return mixed, extras

    if present is None:
      mixed, mass = mix(weight, weight)
      if weight is not None:
        mixed = [_divide(x, mass) for x in mixed]
    else:
      divides = codec is None or codec.weighted
      mixed, mass = among_present(
        mixing, mix, floats, weight, present, turn, divides=divides
      )
      # A message that was not sent leaves the memory of its sender as it was.
      memory = select(present, memory, state.memory)
    new = back(mixed)
    if weight is not None:
      new['weight'] = mass
    if own is not None:
      new[own] = back(known)[what[0]]
      if replica.has(own):
        new[own] = cast_like(new[own], replica.get(own))
    return replica.set(new), SyncState(rounds, memory)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    floats, _ = floats_of(shapes, what)
    payload: float = (
      payload_bytes(floats)
      if codec is None
      else coded_bytes(codec.compressor, floats)
    )
    if shapes.has('weight'):
      payload += payload_bytes(shapes.get('weight'))
    sent = traffic(
      mixing, payload, num_replicas, steps, coded=codec is not None
    )
    if not waits:
      sent = sent._replace(waits=1)
    return (sent,)

  def resize(
    replica: Replica, state: SyncState, change: Change
  ) -> tuple[Replica, ArrayTree]:
    del change
    if codec is None:
      return replica, state
    return replica, state._replace(memory=codec.resize(state.memory))

  drawn = ('shared_key',) * mixing.random + ('key',) * (codec is not None)
  held = (*what, *([] if own is None else [own]))
  found = names(reads=(*what, *drawn), writes=(*held, 'weight'), assigns=held)
  found = found._replace(uses=found.uses | {PRESENT})
  return ReplicaTransformation(
    update, init, cost, names=found, talks=(True,), resize=resize
  )


def check_rows(mixing: Mixing, num_replicas: int) -> None:
  """Raise ValueError unless the mixing averages `num_replicas` replicas.

  The rows of its matrices must sum to one. Matrices of push-sum may not.
  """
  if not mixing.weights(num_replicas).sum_to_one(1):
    raise ValueError(
      'a mixing must have rows that sum to 1, got one in which only the '
      'columns do; use it with pr.sgp, which weights the replicas'
    )


def check_registers(stage: str, what: Any) -> tuple[str, ...]:
  """Return the names of registers that a stage mixes, or raise ValueError."""
  named = (what,) if isinstance(what, str) else what
  if (
    not isinstance(named, Sequence)
    or not named
    or not all(isinstance(name, str) for name in named)
    or len(set(named)) != len(named)
    or set(named) & {*CLOCK, 'metrics'}
  ):
    raise ValueError(
      f"{stage} expects names of registers such as 'params', each once, got "
      f'{what!r}'
    )
  if 'weight' in named:
    raise ValueError(
      f"{stage} always mixes the register 'weight', got {what!r}; leave "
      "'weight' out"
    )
  return tuple(named)


def _check_floats(name: str, replica: Replica) -> None:
  """Raise ValueError for a register with leaves but no floating leaves."""
  if name in FIELDS:
    return  # because an optimizer may have only counts, or no state
  if name not in replica.registers:
    raise ValueError(
      f'sync: register {name!r} has no shape before the first step, because it '
      f'comes from metrics; declare it with pr.remember({name}=0.0)'
    )
  leaves = jax.tree.leaves(replica.get(name))
  if leaves and not any(map(is_inexact, leaves)):
    raise ValueError(
      f'sync mixes floating leaves, but register {name!r} has only integers; '
      f'assign floats to it, as in pr.remember({name}=1.0)'
    )


def _check_codec(
  codec: Codec, mixing: Mixing, num_replicas: int, weighted: bool
) -> None:
  number = mixing.weights(num_replicas).number if codec.one_matrix else 1
  if number != 1:
    raise ValueError(
      'a codec of differences requires one W for all rounds, got a mixing with '
      f'{number or "many"}; use a static one such as pr.graphs.ring()'
    )
  if weighted and not codec.weighted:
    raise ValueError(_UNWEIGHTED)


def _check_presence(codec: Codec, mixing: Mixing, replica: Replica) -> None:
  """Raise ValueError if a codec does not support absent replicas."""
  if presence(replica) is None:
    return
  if codec.one_matrix:
    raise ValueError(
      'a codec of differences keeps a sum of all messages received, which one '
      'missed message falsifies, got replicas that crash or come late; use '
      'pr.codecs.feedback(compressor), or only faults of NaN'
    )
  if not (codec.weighted or mixing.averages):
    raise ValueError(
      'a codec that counts senders supports replicas that crash or come late '
      'only in a mean, got a graph; use pr.codecs.feedback(compressor)'
    )


def _start_rounds(
  mixing: Mixing, replica: Replica, num_replicas: int
) -> ArrayTree:
  """Return int32[V] zeros if the mixing alternates between matrices, or ()."""
  if mixing.random or mixing.weights(num_replicas).number == 1:
    return ()
  return jnp.zeros(jax.tree.leaves(replica.params)[0].shape[:1], jnp.int32)


def _take_turn(
  context: Context, rounds: ArrayTree
) -> tuple[Context, ArrayTree]:
  if isinstance(rounds, tuple):
    return context, rounds
  return context._replace(round=rounds[0]), rounds + 1


def _coded(
  mixing: Mixing,
  codec: Codec,
  values: list[Array],
  extras: Any,
  memory: ArrayTree,
  present: Array | None,
  context: Context,
) -> tuple[list[Array], Any, list[Array], ArrayTree]:
  """Return (mixed, extras, this replica as the receivers know it, memory).

  Args:
    mixing: W.
    codec: encodes the values.
    values: leaves `[V, ...]`.
    extras: [V] numbers that travel with the codes, such as weights.
    memory: the memory of the codec.
    present: bool[V], the replicas whose codes count; None for all.
    context: the context of the round.
  """
  shapes = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in values]

  def decode(codes: ArrayTree) -> ArrayTree:
    return codec.compressor.decode(codes, shapes)

  def unpack(message: ArrayTree) -> ArrayTree:
    codes, extras, here = message
    decoded = decode(codes)
    if here is not None:
      decoded = jax.tree.map(lambda x: jnp.where(here, x, 0), decoded)
      here = here.astype(jnp.float32)
    return decoded, extras, here

  sent = over_block(codec.prepare)(values, memory)
  codes = over_block(codec.compressor.encode)(context.key, sent)
  mixed, extras, _ = mixing.apply(
    (codes, extras, present), context, decode=unpack
  )
  mixed, known, memory = over_block(codec.finish)(
    sent, over_block(decode)(codes), mixed, memory
  )
  return mixed, extras, known, memory


def floats_of(
  replica: Replica, what: Sequence[str]
) -> tuple[list[Array], Callable[[list[Array]], dict[str, ArrayTree]]]:
  """Return the widened floating leaves of registers, and the inverse map."""
  leaves, treedef = jax.tree.flatten({n: replica.get(n) for n in what})
  places = [i for i, x in enumerate(leaves) if is_inexact(x)]

  def wide(x: Any) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, wire_dtype(x))
    return x.astype(wire_dtype(x))

  def back(new: list[Array]) -> dict[str, ArrayTree]:
    put = list(leaves)
    for i, x in zip(places, new, strict=True):
      put[i] = x.astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, put)

  return [wide(leaves[i]) for i in places], back


def _scale(floats: list[Array], weight: Array) -> list[Array]:
  # Where the weight is 0, select 0, because 0 times inf or NaN is NaN.
  times = over_block(lambda x, w: jnp.where(w != 0, x * w.astype(x.dtype), 0))
  return [times(x, weight) for x in floats]


def _divide(x: Array, mass: Array) -> Array:
  return over_block(lambda x, w: x / w.astype(x.dtype))(x, mass)
