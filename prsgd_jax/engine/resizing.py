"""RESIZING: a checkpoint of N replicas becomes one of N' replicas.

On the host, every register is averaged over the N saved replicas and handed out
to the N' new ones, as `sync(mean())` would average it. Then the stages change
what means something else, see `stages.on_resize`. A change of N is one
more average of all replicas. It keeps whatever an algorithm knows of their
mean, and starts what it knows of their differences at zero.

Data are dealt by step, replica and number of replicas. So after the change, the
examples are those of a run that always had N' replicas, at the same step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Change, ReplicaTransformation
from prsgd_jax.checks import check_listed, check_step
from prsgd_jax.engine import checkpoint_leaves
from prsgd_jax.engine.checkpoint_leaves import Leaves
from prsgd_jax.engine.train_state import TrainState
from prsgd_jax.mixing.payload import is_inexact
from prsgd_jax.names import PRESENT
from prsgd_jax.stages.presence import presence
from prsgd_jax.tracing.keys import to_data

_WEIGHT = 'registers.weight'
_PRIVATE = 'algorithm_state.'
# Counters of rounds, which exist only if the mixing has several matrices. Their
# number may depend on N.
_ROUNDS = '.rounds'


def resize(
  algorithm: ReplicaTransformation,
  like: TrainState,
  leaves: Mapping[str, np.ndarray],
  num_replicas: int,
  survivors: Sequence[int] | None = None,
) -> Leaves:
  """Return the leaves of a checkpoint for another number of replicas.

  Args:
    algorithm: the algorithm, which fits N' replicas.
    like: a state of it with N' replicas; only its types are read.
    leaves: the saved arrays, `[N, ...]`.
    num_replicas: N'.
    survivors: the saved replicas that stay, in the order of the new ones; at
      most N' are used. It matters only to registers that replicas keep.
      Averages are over all saved replicas, because a checkpoint also has those
      that are lost, but not over those that `faults` made dead. Default: the
      first min(N, N').

  Returns:
    The arrays, `[N', ...]`.

  Raises:
    ValueError: if the leaves are not of this algorithm and model, if
      `survivors` are not different saved replicas, or if the algorithm refuses
      the change.
  """
  before = _number_of(leaves)
  if before == num_replicas and survivors is None:
    return dict(leaves)  # nothing changes
  names, types, treedef = _types(like)
  _check(algorithm, dict(zip(names, types, strict=True)), leaves)
  rows = [
    leaves[name] if name in leaves else _zeros(before, kind)
    for name, kind in zip(names, types, strict=True)
  ]
  saved = jax.tree.unflatten(treedef, rows)
  present = _present(algorithm, saved)
  change = Change(
    saved.replica(),
    *_origin(present, num_replicas, survivors),
    int(leaves['step']),
    num_replicas,
  )
  weight = leaves.get(_WEIGHT, np.ones(before))
  shares = {plain: _share(present, weight, plain) for plain in (True, False)}

  def averaged(name: str, x: np.ndarray) -> np.ndarray:
    if checkpoint_leaves.is_shared(name):
      return x
    one = _average(x, shares[name == _WEIGHT or name.startswith(_PRIVATE)])
    return np.broadcast_to(one, (num_replicas, *one.shape))

  new = [averaged(name, x) for name, x in zip(names, rows, strict=True)]
  state = jax.tree.unflatten(treedef, new)
  return dict(zip(names, _changed(algorithm, state, change), strict=True))


def _zeros(before: int, kind: jax.ShapeDtypeStruct) -> np.ndarray:
  """Return a saved leaf that is missing, which is not read."""
  return np.broadcast_to(np.zeros((), kind.dtype), (before, *kind.shape))


def _present(algorithm: ReplicaTransformation, saved: TrainState) -> np.ndarray:
  """Return bool[N], the saved replicas that are not dead, see `faults`."""
  given = saved.replica(), saved.algorithm_state
  before = len(jax.tree.leaves(saved.params)[0])
  # Evaluated only if needed, because an output may be a large computation.
  if not jax.eval_shape(algorithm.output, *given).has(PRESENT):
    return np.ones(before, bool)
  return np.asarray(presence(algorithm.output(*given)))


def _changed(
  algorithm: ReplicaTransformation, state: TrainState, change: Change
) -> list[np.ndarray]:
  """Return the leaves of a state after the stages have changed it."""
  replica, private = algorithm.resize(
    state.replica(), state.algorithm_state, change
  )
  state = state.replace(
    params=replica.params,
    opt_state=replica.opt_state,
    model_state=replica.model_state,
    algorithm_state=private,
    registers=dict(replica.registers),
  )
  return [np.asarray(x) for x in jax.tree.leaves(state)]


def _number_of(leaves: Mapping[str, np.ndarray]) -> int:
  return next(len(x) for n, x in leaves.items() if n.startswith('params'))


def _origin(
  present: np.ndarray, after: int, survivors: Sequence[int] | None
) -> tuple[np.ndarray, int]:
  """Return (the saved replica of each new one, the number that stayed)."""
  before = len(present)
  if survivors is None:
    stay = np.flatnonzero(present).tolist() or list(range(before))
  else:
    listed = check_listed('survivors', survivors)
    stay = [check_step('survivors', i) for i in listed]
    if not stay or len(set(stay)) < len(stay) or max(stay) >= before:
      raise ValueError(
        f'survivors expects different replicas in 0 .. {before - 1}, got '
        f'{list(survivors)}'
      )
  stayed = min(len(stay), after)
  return np.resize(stay[:stayed], after), stayed


def _types(
  like: TrainState,
) -> tuple[list[str], list[jax.ShapeDtypeStruct], Any]:
  """Return the names and types of one replica's leaves, and their structure."""

  def one(name: str, x: Any) -> jax.ShapeDtypeStruct:
    x = jax.eval_shape(to_data, x)
    axes = 1 if checkpoint_leaves.is_shared(name) else 2
    return jax.ShapeDtypeStruct(x.shape[axes:], x.dtype)

  names = checkpoint_leaves.names(like)
  found, treedef = jax.tree.flatten(like)
  return names, [one(n, x) for n, x in zip(names, found, strict=True)], treedef


def _check(
  algorithm: ReplicaTransformation,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  leaves: Mapping[str, np.ndarray],
) -> None:
  """Raise ValueError if a leaf has another type, or cannot be made."""

  def text(dtype: Any, shape: tuple[int, ...]) -> str:
    return f'{dtype}{list(shape)}'

  for name in sorted({*wanted, *leaves}):
    axes = 0 if checkpoint_leaves.is_shared(name) else 1
    saved, this = leaves.get(name), wanted.get(name)
    old = None if saved is None else text(saved.dtype, saved.shape[axes:])
    new = None if this is None else text(this.dtype, this.shape)
    one_sided = old is None or new is None
    if old != new and not (one_sided and _made(algorithm, name)):
      raise ValueError(
        f'it has {name}: {old or "nothing"} of each replica, this run has '
        f'{new or "nothing"}; it is of another algorithm or model'
      )


def _made(algorithm: ReplicaTransformation, name: str) -> bool:
  """Return whether a leaf is made when N changes, and may be missing."""
  counter = name.startswith(_PRIVATE) and name.endswith(_ROUNDS)
  registers = [f'registers.{n}' for n in algorithm.names.resized]
  return counter or any(
    name == register or name.startswith(f'{register}.')
    for register in registers
  )


def _share(present: np.ndarray, weight: np.ndarray, plain: bool) -> np.ndarray:
  """Return float64[N], the weight of each saved replica in an average."""
  mass = present.astype(np.float64)
  if not plain and (present * weight).sum() > 0:
    mass = present * np.asarray(weight, np.float64)
  return mass / mass.sum() if mass.any() else np.full(len(mass), 1 / len(mass))


def _average(rows: np.ndarray, share: np.ndarray) -> np.ndarray:
  """Return the average of `[N, ...]`, bit-equal to rows that are all equal.

  Integers that differ have no mean. The largest is taken, because an optimizer
  that counts its steps then corrects the bias of its averages least.
  """
  taken = rows[share > 0]
  if (taken == taken[:1]).all():
    return taken[0]
  if not is_inexact(rows):
    return taken.max(axis=0)
  wide = jnp.promote_types(rows.dtype, np.float64)
  total = np.zeros(rows.shape[1:], wide)
  for x, part in zip(rows, share, strict=True):
    if part > 0:  # because 0 times NaN is NaN
      total += part * x.astype(wide)
  return total.astype(rows.dtype)
