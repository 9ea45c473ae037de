"""Names of the registers that a stage reads and assigns, known before tracing.

The names are static, so mistakes in an algorithm are found before a run starts:
misspelled registers, registers that no stage assigns, and registers that two
stages declare. They are reported when the stage is constructed or when the
train state is created.
"""

from collections.abc import Iterable, Sequence
import difflib
from typing import Any, NamedTuple

import jax

# The registers of every replica. Each is a field of `Replica`.
FIELDS = ('params', 'grads', 'opt_state', 'model_state', 'metrics')
# Names that a rule may read besides registers. They cannot be assigned.
CLOCK = ('step', 'replica', 'num_replicas', 'key', 'shared_key')
# The engine fills these before the first stage of the first step.
GIVEN = ('params', 'model_state')
# One bool for each replica: whether it takes part in rounds, and in averages.
PRESENT = 'present'


class Names(NamedTuple):
  """Registers of a stage.

  Attributes:
    reads: registers that must hold a value before the stage runs.
    uses: all registers read anywhere inside, even if assigned inside first.
    writes: registers that the stage may assign.
    assigns: registers that always hold a value after the stage.
    declares: registers that the stage creates for the whole run.
    lasts: registers read outside of steps, by `remember`, `evaluate` and
      `on_resize`. They must last for the whole run, because temporary registers
      are empty there.
    resized: registers that `on_resize` assigns when the number of replicas
      changes. All other registers are averaged then.
  """

  reads: frozenset[str] = frozenset()
  uses: frozenset[str] = frozenset()
  writes: frozenset[str] = frozenset()
  assigns: frozenset[str] = frozenset()
  declares: frozenset[str] = frozenset()
  lasts: frozenset[str] = frozenset()
  resized: frozenset[str] = frozenset()


def names(
  *,
  reads: Iterable[str] = (),
  writes: Iterable[str] = (),
  assigns: Iterable[str] | None = None,
  declares: Iterable[str] = (),
) -> Names:
  """Return the names of a hand-written stage.

  Args:
    reads: the registers that the stage reads, and 'key' or 'shared_key' if it
      draws random numbers.
    writes: the registers that the stage may assign.
    assigns: the subset of `writes` that the stage always assigns. Default: all.
    declares: the registers that its `init` creates for the whole run.

  Returns:
    The `Names` to pass to `ReplicaTransformation(names=...)`.

  Example:
    >>> sorted(names(reads=['params'], writes=['size']).assigns)
    ['size']
  """
  reads, writes = frozenset(reads), frozenset(writes)
  sure = writes if assigns is None else frozenset(assigns)
  return Names(reads, reads, writes, sure, frozenset(declares))


def joined(parts: Sequence[Names]) -> Names:
  """Return the names of a chain of stages.

  Raises:
    ValueError: if two stages declare one register.
  """
  held: frozenset[str] = frozenset()
  reads: frozenset[str] = frozenset()
  declares: frozenset[str] = frozenset()
  for own in parts:
    for name in sorted(declares & own.declares):
      raise ValueError(_declared_twice(name))
    declares |= own.declares
    reads |= own.reads - held
    held |= own.assigns | own.declares

  def union(field: str) -> frozenset[str]:
    return frozenset().union(*(getattr(n, field) for n in parts))

  return Names(
    reads,
    union('uses'),
    union('writes'),
    union('assigns'),
    declares,
    union('lasts'),
    union('resized'),
  )


def _declared_twice(name: str) -> str:
  if name == 'opt_state':
    return (
      'an algorithm has one optimizer state, but two local_update stages were '
      'chained; combine their optimizers with optax.chain'
    )
  if name == 'weight':
    return (
      "an algorithm has one register 'weight', which sync uses to weight the "
      'replicas, but two stages declare it; declare it once'
    )
  return (
    f'register {name!r} is declared by two stages of a chain; put one of them '
    "into a scope with pr.algorithm('name', ...)"
  )


def check_complete(found: Names) -> None:
  """Check the names of a whole algorithm.

  Only the whole can be checked, because one part of an algorithm may use
  registers that another part declares.

  Raises:
    ValueError: if a register is read before it is assigned, or is assigned but
      never read; if `remember` or `evaluate` reads a temporary register.
  """
  known = found.declares | found.writes
  for name in sorted(found.reads - {*CLOCK, *GIVEN}):
    if name == 'opt_state' and name in found.declares:
      continue  # because the engine creates it before the first step
    raise ValueError(_never_held(name, found.declares, known))
  for name in sorted(found.lasts - found.declares - {*CLOCK, *GIVEN}):
    raise ValueError(
      f'register {_short(name)!r} is read by remember, evaluate or on_resize, '
      'outside of steps, but it is dropped at the end of a step; declare it '
      'with pr.remember, or assign what is needed with pr.let(...) in the step'
    )
  unread = found.writes - found.uses - found.declares - {*FIELDS, 'weight'}
  for name in sorted(unread):
    raise ValueError(
      f'register {_short(name)!r} is assigned but never read'
      f'{_near(name, found.declares | found.uses)}; remove it, or declare it '
      f'with pr.remember({_short(name)}=...)'
    )


def _never_held(
  name: str, declares: frozenset[str], known: frozenset[str]
) -> str:
  """Return a message that explains why a register holds no value yet."""
  if name == 'grads':
    return (
      'grads is read before a gradient is taken; put pr.gradient() before it'
    )
  if name == 'metrics':
    return (
      'metrics is read before a gradient is taken; put pr.gradient() before '
      'that stage'
    )
  if name == 'opt_state':
    return (
      'opt_state is read, but the algorithm has no optimizer; add '
      'pr.local_update(tx) to the chain'
    )
  short = _short(name)
  if name in declares:
    return (
      f'register {short!r} is read before it is declared; move its pr.remember '
      'before that stage'
    )
  scope = name.rpartition('.')[0]
  if scope and any(outer in known for outer in _around(scope, short)):
    return (
      f'register {short!r} is read inside the algorithm '
      f'{_short(scope)!r}, which also assigns it, so it is local and not the '
      'register of that name outside; use pr.chain in place of pr.algorithm, '
      'or assign another name'
    )
  if name in known:
    return (
      f'register {short!r} is read where it may hold no value'
      f'{_near(name, known | {*FIELDS}, 0.75)}, because it is assigned later '
      'or only inside an at(...); move that stage, or declare the register '
      f'with pr.remember({short}=...)'
    )
  return (
    f'register {short!r} is read, but no stage assigns it'
    f'{_near(name, known | {*FIELDS})}; assign it first, or declare it with '
    f'pr.remember({short}=...)'
  )


def check_writes(found: Names, before: Any, after: Any) -> None:
  """Check, while tracing, that a stage assigned only registers it names.

  Args:
    found: the names of the stage.
    before: the `Replica` passed to the stage.
    after: the `Replica` that the stage returned.

  Raises:
    ValueError: if another register was assigned.
  """
  allowed = found.writes | found.declares
  for name in {*FIELDS, *after.registers} - allowed:
    old = jax.tree.leaves(before.get(name)) if before.has(name) else []
    new = jax.tree.leaves(after.get(name))
    if len(old) != len(new) or any(x is not y for x, y in zip(old, new)):
      raise ValueError(
        f'a stage assigned register {name!r}, but its names.writes are '
        f'{sorted(allowed)}; add {name!r} to its names'
      )


def _around(scope: str, short: str) -> list[str]:
  """Return the names a register may have in the algorithms around a scope."""
  parts = scope.split('.')[:-1]
  return ['.'.join([*parts[:i], short]) for i in range(len(parts) + 1)]


def _short(name: str) -> str:
  """Return the name as typed, without the prefix of its algorithm."""
  return name.rpartition('.')[2]


def _near(name: str, known: Iterable[str], cutoff: float = 0.65) -> str:
  short = {_short(other) for other in known} - {_short(name)}
  near = difflib.get_close_matches(_short(name), sorted(short), 1, cutoff)
  return f' (did you mean {near[0]!r}?)' if near else ''
