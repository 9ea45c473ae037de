"""Which registers a stage reads and assigns: known before anything is traced.

A misspelled register, a stage that reads what nobody assigns, or two stages
that declare one name are errors of the algorithm, not of a run. The names of a
stage are static, so such errors are found when the stage is constructed or when
the train state is created.
"""

from collections.abc import Iterable, Sequence
import difflib
from typing import Any, NamedTuple

import jax

# The registers that every replica has; each is a field of `Replica`.
FIELDS = ('params', 'grads', 'opt_state', 'model_state', 'metrics')
# What a rule may read besides registers. None of it can be assigned.
CLOCK = ('step', 'replica', 'num_replicas', 'key', 'shared_key')
# The engine fills these before the first stage of the first step.
GIVEN = ('params', 'model_state')


class Names(NamedTuple):
  """The registers of a stage.

  Attributes:
    reads: registers that must hold something before the stage runs.
    uses: all registers read anywhere inside, also those assigned inside first.
    writes: registers that the stage may assign.
    assigns: registers that certainly hold something after the stage.
    declares: registers that last for the whole run and are created here.
    lasts: registers read outside of steps, by `remember` and `evaluate`. They
      must last, because what belongs to a step holds nothing there.
  """

  reads: frozenset[str] = frozenset()
  uses: frozenset[str] = frozenset()
  writes: frozenset[str] = frozenset()
  assigns: frozenset[str] = frozenset()
  declares: frozenset[str] = frozenset()
  lasts: frozenset[str] = frozenset()


def names(
  *,
  reads: Iterable[str] = (),
  writes: Iterable[str] = (),
  assigns: Iterable[str] | None = None,
  declares: Iterable[str] = (),
) -> Names:
  """Returns the names of a hand-written stage.

  Args:
    reads: the registers it reads, and of the clock 'key' and 'shared_key' if it
      draws random numbers.
    writes: the registers it may assign.
    assigns: those of `writes` that it always assigns; all of them by default.
    declares: the lasting registers that its `init` creates.

  Example:
    >>> sorted(names(reads=['params'], writes=['size']).assigns)
    ['size']
  """
  reads, writes = frozenset(reads), frozenset(writes)
  sure = writes if assigns is None else frozenset(assigns)
  return Names(reads, reads, writes, sure, frozenset(declares))


def joined(parts: Sequence[Names]) -> Names:
  """Returns the names of a chain of stages.

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
  )


def _declared_twice(name: str) -> str:
  if name == 'opt_state':
    return (
      'an algorithm has one optimizer state, but two local_update stages were '
      'chained; join their optimizers by optax.chain'
    )
  if name == 'weight':
    return (
      "an algorithm has one register 'weight', by which sync weighs the "
      'replicas, but two stages declare it; weigh them once'
    )
  return (
    f'register {name!r} is declared by two stages of a chain; give one of them '
    "names of its own by pr.algorithm('name', ...)"
  )


def check_complete(found: Names) -> None:
  """Checks the names of a whole algorithm.

  A part of an algorithm may use registers that another part declares, so only
  the whole can be checked.

  Raises:
    ValueError: if a register is read but not assigned before, or assigned but
      never read; if `remember` or `evaluate` reads one that does not last.
  """
  known = found.declares | found.writes
  for name in sorted(found.reads - {*CLOCK, *GIVEN}):
    if name == 'opt_state' and name in found.declares:
      continue  # the engine has it from the first step on
    raise ValueError(_never_held(name, found.declares, known))
  for name in sorted(found.lasts - found.declares - {*CLOCK, *GIVEN}):
    raise ValueError(
      f'register {_short(name)!r} is read by remember or evaluate, outside of '
      'steps, but it ends with the step; declare it by pr.remember, or assign '
      'what is needed by pr.let(...) in the step'
    )
  unread = found.writes - found.uses - found.declares - {*FIELDS, 'weight'}
  for name in sorted(unread):
    raise ValueError(
      f'register {_short(name)!r} is assigned but never read'
      f'{_near(name, found.declares | found.uses)}; drop it, or declare it by '
      f'pr.remember({_short(name)}=...)'
    )


def _never_held(
  name: str, declares: frozenset[str], known: frozenset[str]
) -> str:
  """Explains why a register that is read holds nothing."""
  if name == 'grads':
    return (
      'grads is read before a gradient is taken; chain pr.gradient() before it'
    )
  if name == 'metrics':
    return (
      'metrics is read before a gradient is taken; chain pr.gradient() before '
      'that stage'
    )
  if name == 'opt_state':
    return (
      'opt_state is read, but the algorithm has no optimizer; chain '
      'pr.local_update(tx) to it'
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
      f'{_short(scope)!r}, which also assigns it, so that it is not the '
      'register of that name around; use pr.chain in place of pr.algorithm, or '
      'assign another name'
    )
  if name in known:
    return (
      f'register {short!r} is read where it need not hold anything'
      f'{_near(name, known | {*FIELDS}, 0.75)}: it is assigned later, or only '
      'inside an at(...); move that stage, or declare the register by '
      f'pr.remember({short}=...)'
    )
  return (
    f'register {short!r} is read, but no stage assigns it'
    f'{_near(name, known | {*FIELDS})}; assign it before, or declare it by '
    f'pr.remember({short}=...)'
  )


def check_writes(found: Names, before: Any, after: Any) -> None:
  """Checks, while tracing, that a stage assigned only what it says.

  Args:
    found: the names of the stage.
    before: the `Replica` that the stage was given.
    after: the `Replica` that it returned.

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
        f'{sorted(allowed)}; add {name!r} to them'
      )


def _around(scope: str, short: str) -> list[str]:
  """The names that a register may have in the algorithms around a scope."""
  parts = scope.split('.')[:-1]
  return ['.'.join([*parts[:i], short]) for i in range(len(parts) + 1)]


def _short(name: str) -> str:
  """The name that the author typed, without those of the algorithms around."""
  return name.rpartition('.')[2]


def _near(name: str, known: Iterable[str], cutoff: float = 0.65) -> str:
  short = {_short(other) for other in known} - {_short(name)}
  near = difflib.get_close_matches(_short(name), sorted(short), 1, cutoff)
  return f' (did you mean {near[0]!r}?)' if near else ''
