"""A run whose number of replicas changes when it is resumed.

A checkpoint notes the numbers of replicas so far, and what was spent. When it
is restored onto another number, the ledger of the new number counts on. What
both differ by until then is carried, and added from then on.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

from absl import flags

from experiments.running.execution.parts import Parts
from experiments.running.flags.run_config import FIT_REPLICAS, RunConfig
from experiments.running.process import process_zero
from experiments.running.records import progress, records
from prsgd_jax import ledger
from prsgd_jax.base import ArrayTree
from prsgd_jax.engine import checkpoint_files
from prsgd_jax.engine.checkpoints import CheckpointError
from prsgd_jax.engine.run_state import State

# Names in the notes of a checkpoint.
_SPENT, _SIZES, _CARRIED = 'spent', 'sizes', 'carried'
# Each number of replicas of a run, with the step at which it began.
Sizes = tuple[tuple[int, int], ...]


class History(NamedTuple):
  """The numbers of replicas of a run so far.

  Attributes:
    sizes: (first step, number of replicas), in order.
    carried: what the run spent until the last change, less what the present
      replicas would have spent until then; None if nothing changed.
  """

  sizes: Sizes
  carried: ledger.Spent | None = None

  def counted(self, meter: ledger.Meter) -> ledger.Meter:
    """Return the meter of the present replicas, with what is carried."""
    carried = self.carried
    if carried is None:
      return meter

    def spent(
      position: ledger.Position, algorithm_state: ArrayTree = ()
    ) -> ledger.Spent:
      return _sum(carried, meter.spent(position, algorithm_state))

    return meter._replace(spent=spent)

  def record(self) -> records.Record:
    """Return what a record says of a run that has changed, else nothing."""
    return {'num_replicas': self.sizes[-1][1]} if self.sizes[1:] else {}

  def summary(self) -> records.Record:
    """Return what the summary says of a run that has changed, else nothing."""
    return {_SIZES: _listed(self.sizes)} if self.sizes[1:] else {}

  def notes(self, spent: ledger.Spent) -> dict[str, Any]:
    """Return what a checkpoint notes, given what was spent."""
    carried = None if self.carried is None else self.carried._asdict()
    return {
      _SPENT: spent._asdict(), _SIZES: _listed(self.sizes), _CARRIED: carried
    }  # fmt: skip


def planned(config: RunConfig, workdir: pathlib.Path) -> RunConfig:
  """Return the config of a resumed run, with its numbers of replicas.

  Args:
    config: the run as the flags describe it, perhaps with other replicas.
    workdir: directory of the run.

  Raises:
    CheckpointError: if the newest checkpoint is damaged.
  """

  def listed() -> list[tuple[int, int]]:
    found = progress.newest(workdir)
    if found is None:
      return []
    return list(_next(_read(workdir, found[0]), found[0], config.num_replicas))

  decided = process_zero.decide('the numbers of replicas', listed)
  sizes = tuple((step, n) for step, n in decided)
  return dataclasses.replace(config, sizes=sizes if sizes[1:] else ())


def survivors_from_flags(values: flags.FlagValues) -> list[int] | None:
  """Return the replicas of --survivors, None without it.

  Raises:
    ValueError: if it is not a list of numbers, or does nothing.
  """
  if values.survivors is None:
    return None
  if not values.resume:
    raise ValueError('--survivors does nothing without --resume')
  if not all(x.isascii() and x.isdigit() for x in values.survivors):
    raise ValueError(
      '--survivors expects replicas such as 0,1,4,5, got '
      f'{",".join(values.survivors)!r}'
    )
  return [int(x) for x in values.survivors]


def restore(
  parts: Parts,
  workdir: pathlib.Path,
  like: State,
  step: int,
  survivors: Sequence[int] | None = None,
) -> tuple[State, History]:
  """Restore a checkpoint onto the replicas of the parts.

  Args:
    parts: the run.
    workdir: directory of the run.
    like: a new state of the run.
    step: step of the checkpoint.
    survivors: the saved replicas that stay. Default: the first ones.

  Raises:
    CheckpointError: if the checkpoint cannot be used.
  """
  directory = workdir / records.CHECKPOINTS
  saved = process_zero.decide(
    'the saved number of replicas', lambda: _read(workdir, step)
  )
  n = parts.trainer.mesh.num_replicas
  changes = saved['num_replicas'] != n or survivors is not None
  if not changes:
    state = parts.trainer.restore(directory, like, parts.description, step)
    return state, _history(saved, step, n)
  notes = saved['notes'] or {}
  if _SPENT not in notes:
    raise CheckpointError(
      f'{directory / str(step)} was saved by a version that could not change '
      f'the number of replicas; first resume it with --num_replicas='
      f'{saved["num_replicas"]} until its next checkpoint'
    )
  state = parts.trainer.restore(
    directory,
    like,
    _as_saved(parts.description, saved['description']),
    step,
    resize=True,
    survivors=survivors,
  )
  meter = parts.meter
  position = meter.advance(meter.init(), step)
  private = state.on_devices.algorithm_state
  after = meter.spent(position, private)
  carried = _sum(_of_json(notes[_SPENT]), after, -1)
  return state, History(_next(saved, step, n), carried)


def _read(workdir: pathlib.Path, step: int) -> dict[str, Any]:
  path = checkpoint_files.path_of(workdir / records.CHECKPOINTS, step)
  record = checkpoint_files.read_seal(path)
  return {n: record.get(n) for n in ('num_replicas', 'notes', 'description')}


def _next(saved: Mapping[str, Any], step: int, n: int) -> Sizes:
  """Return the sizes of a run that continues a checkpoint with n replicas."""
  sizes = _history(saved, step, saved['num_replicas']).sizes
  return sizes if sizes[-1][1] == n else (*sizes, (step, n))


def _history(saved: Mapping[str, Any], step: int, n: int) -> History:
  notes = saved['notes'] or {}
  listed = notes.get(_SIZES) or [{'step': 0, 'num_replicas': n}]
  sizes = tuple((x['step'], x['num_replicas']) for x in listed)
  carried = notes.get(_CARRIED)
  return History(sizes, None if carried is None else _of_json(carried))


def _listed(sizes: Sizes) -> list[dict[str, int]]:
  return [{'step': step, 'num_replicas': n} for step, n in sizes]


def _of_json(spent: Mapping[str, Any]) -> ledger.Spent:
  return ledger.Spent(**spent)


def _sum(a: ledger.Spent, b: ledger.Spent, sign: int = 1) -> ledger.Spent:
  """Return a + b, or a - b, field by field."""
  one, other = a._asdict(), b._asdict()
  tiers = (one.pop('bytes_by_tier'), other.pop('bytes_by_tier'))
  by_tier = {
    tier: tiers[0].get(tier, 0.0) + sign * tiers[1].get(tier, 0.0)
    for tier in {**tiers[0], **tiers[1]}
  }
  numbers = {name: x + sign * other[name] for name, x in one.items()}
  return ledger.Spent(**numbers, bytes_by_tier=by_tier)


def _as_saved(
  description: Mapping[str, Any], saved: Mapping[str, Any]
) -> dict[str, Any]:
  """Return the description with the saved number of replicas.

  Options with a number for each replica must change with it, so they are not
  compared either.
  """
  options = dict(description.get('options', {}))
  before = saved.get('options', {})
  for name in FIT_REPLICAS:
    options.pop(name, None)
    if name in before:
      options[name] = before[name]
  return {
    **description,
    'num_replicas': saved.get('num_replicas'),
    'options': options,
  }
