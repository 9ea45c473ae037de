"""Pieces: the runs of a long target, one curve and one seed each.

A piece is a run of `runs.execute` in its own directory, which a later call
resumes. Pieces run in the order that shows most first. Their progress is read
from their directories and their kept curves, without data and without devices.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import pathlib
from typing import NamedTuple

from experiments.papers import kept_curves
from experiments.running.execution import experiment, runs
from experiments.running.execution.finite import NonFinite
from experiments.running.execution.intervals import Intervals
from experiments.running.execution.parts import Parts
from experiments.running.flags.run_config import RunConfig, total_steps
from experiments.running.process import budgets, messages
from experiments.running.records import records
from experiments.tools import tables
from experiments.tools.tables import Column
import prsgd_jax as pr
from prsgd_jax.data.datasets import Dataset

# data_dir -> the data of a piece
Load = Callable[[str | None], Dataset]


class Piece(NamedTuple):
  """One curve of a target with one seed.

  Attributes:
    label: name of the curve, such as 'I = 4'.
    config: the run.
    intervals: steps between records, evaluations and checkpoints.
    workdir: directory of the run.
    load: `data_dir -> Dataset`.
    num_examples: number of training examples, known without the data.
    network: network of the modeled time.
    num_devices: D. Default: the largest number of devices that divides N.
    adapt: `(parts, dataset) -> parts`, changes before the run. Default: none.
    priority: pieces with a smaller number run first. Default: 0.
    kept: file of the curve of the finished run, which another machine may have
      made. Default: none.
  """

  label: str
  config: RunConfig
  intervals: Intervals
  workdir: pathlib.Path
  load: Load
  num_examples: int
  network: pr.ledger.Network = pr.ledger.NETWORK
  num_devices: int | None = None
  adapt: Callable[[Parts, Dataset], Parts] | None = None
  priority: int = 0
  kept: pathlib.Path | None = None

  @property
  def num_steps(self) -> int:
    """Length of the run in steps."""
    return total_steps(self.config, self.num_examples)

  @property
  def name(self) -> str:
    """Curve and seed, for messages."""
    return f'{self.label}, seed {self.config.seed}'


class Progress(NamedTuple):
  """How far a piece is.

  Attributes:
    step: steps in its records.
    num_steps: length of the run in steps.
    seconds: time spent on these steps.
    finished: whether the run has its summary, or its curve is kept.
    failed: reason why it diverged; '' if it did not.
  """

  step: int
  num_steps: int
  seconds: float
  finished: bool
  failed: str


def train(
  piece: Piece, data_dir: str | None, *, progress: bool = False
) -> list[records.Record]:
  """Train a piece to its end and return its records; resume an earlier call.

  Args:
    piece: the piece.
    data_dir: directory of the prepared data sets.
    progress: whether to show the progress on stderr. Default: False.

  Raises:
    Stopped: if a signal or the end of a budget stopped it; it is saved.
    ValueError: if another run is in its directory.
  """
  dataset = piece.load(data_dir)
  parts = experiment.assemble(
    piece.config, dataset, piece.num_devices, piece.network
  )
  if piece.adapt is not None:
    parts = piece.adapt(parts, dataset)
  with runs.hold(piece.workdir):
    runs.open_workdir(parts, piece.workdir, piece.intervals, resume=True)
    runs.execute(parts, piece.workdir, piece.intervals, progress=progress)
  return records.read_records(piece.workdir)


def progress_of(piece: Piece, *, again: bool = False) -> Progress:
  """Read how far a piece is.

  Args:
    piece: the piece.
    again: whether a kept curve does not count. Default: False.

  Raises:
    DamagedFile: if a file of the run has another form.
  """
  kept = None if again else kept_curves.read(piece.kept)
  if kept is not None:
    return Progress(piece.num_steps, piece.num_steps, kept.seconds, True, '')
  last = records.read_last_record(piece.workdir) or {'step': 0, 'seconds': 0.0}
  failure = records.read_failure(piece.workdir)
  finished = records.finished(piece.workdir, piece.num_steps) is not None
  return Progress(
    last['step'],
    piece.num_steps,
    last['seconds'],
    finished,
    '' if failure is None else failure['failed'],
  )


def in_order(pieces: Iterable[Piece]) -> list[Piece]:
  """Return each piece once, by priority; pieces of one priority keep order."""
  once = {piece.workdir: piece for piece in pieces}
  return sorted(once.values(), key=lambda piece: piece.priority)


def run_all(
  pieces: Sequence[Piece],
  data_dir: str | None,
  left: Callable[[], float],
  on_finished: Callable[[Piece], None],
  *,
  again: bool = False,
) -> bool:
  """Train the unfinished pieces in turn, as long as the budget lasts.

  A piece that diverged is left as it is.

  Args:
    pieces: the pieces in the order of `in_order`.
    data_dir: directory of the prepared data sets.
    left: seconds left of the budget, as `budgets.limited` yields it.
    on_finished: called with each piece that this call finishes.
    again: whether to train pieces with a kept curve, too. Default: False.

  Returns:
    Whether all pieces are finished or diverged.

  Raises:
    Stopped: if a signal or the end of the budget stopped a piece.
    ValueError: if a directory has another run.
  """

  @functools.lru_cache(maxsize=1)  # because many pieces share their data
  def load(own: Load) -> Dataset:
    return own(data_dir)

  for piece in pieces:
    done = progress_of(piece, again=again)
    if done.finished or done.failed:
      continue
    if left() < budgets.LEAST:
      return False
    print(f'{piece.name}: step {done.step} of {done.num_steps}', flush=True)
    cached = piece._replace(load=functools.partial(_loaded, load, piece.load))
    try:
      train(cached, data_dir, progress=True)
    except NonFinite as error:  # kept in its directory
      messages.warn(f'{piece.name}: {error}')
      continue
    on_finished(piece)
  return True


def _loaded(
  load: Callable[[Load], Dataset], own: Load, data_dir: str | None
) -> Dataset:
  """Return the data of a piece from a cache."""
  del data_dir
  return load(own)


def hours_left(pieces: Sequence[Piece]) -> tuple[float, int]:
  """Estimate the hours that the unfinished pieces take, from measured speeds.

  A piece without records counts with the mean speed of the pieces with its
  model and images.

  Args:
    pieces: the pieces.

  Returns:
    The hours, and the number of pieces whose speed is unknown.
  """
  found = [(piece, progress_of(piece)) for piece in pieces]
  total, unknown = 0.0, 0
  for piece, done in found:
    if done.finished or done.failed:
      continue
    alike = [x for p, x in found if x.step and _kind(p) == _kind(piece)]
    rates = [done] if done.step else alike
    if not rates:
      unknown += 1
      continue
    seconds = sum(x.seconds for x in rates) / sum(x.step for x in rates)
    total += (done.num_steps - done.step) * seconds
  return total / 3600, unknown


def _kind(piece: Piece) -> tuple[object, ...]:
  """Return what the time of a step depends on most."""
  config = piece.config
  options = repr(config.model_options)
  return config.model, options, config.dataset, config.batch_size


def status(pieces: Sequence[Piece]) -> str:
  """Return a table of the pieces, and the hours left, as text."""
  rows = [_row(piece, progress_of(piece)) for piece in pieces]
  finished = sum(row['state'] == 'finished' for row in rows)
  hours, unknown = hours_left(pieces)
  without = f' without the {unknown} pieces of unknown speed' if unknown else ''
  return (
    f'{tables.aligned(rows, COLUMNS)}\n'
    f'{finished} of {len(pieces)} pieces finished; estimated hours left: '
    f'{hours:.1f}{without}'
  )


def _row(piece: Piece, done: Progress) -> records.Record:
  started = 'running' if done.step else 'not begun'
  state = 'finished' if done.finished else started
  return {
    'piece': piece.name,
    'run': piece.workdir.parent.name,
    'state': 'diverged' if done.failed else state,
    'step': f'{done.step} of {done.num_steps}',
    'share': f'{done.step / done.num_steps:.0%}',
    'hours': f'{done.seconds / 3600:.2f}',
  }


COLUMNS = (
  Column('run', 'target'),
  Column('piece'),
  Column('state'),
  Column('step', 'steps', is_number=True),
  Column('share', 'done', is_number=True),
  Column('hours', is_number=True),
)
