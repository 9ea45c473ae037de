"""The table of methods in a report: means over seeds, costs of a target."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from experiments.running.records import records, units
from experiments.tools import figures, report_page
from experiments.tools.report_page import Best, Chip, Spread, Table
from experiments.tools.tables import Column


def number(name: str, title: str, show: Any = units.number) -> Column:
  """Return a column of numbers."""
  return Column(name, title, show, is_number=True)


# Measures at the end of a run -> whether less is better.
MEASURES = {
  'test_accuracy': False, 'test_loss': True, 'loss': True,
  'consensus_distance': None,
}  # fmt: skip
# In the table of the runs only, because that of the methods is wide enough.
_DETAILS = ('accuracy', 'seconds', 'steps_per_second')
# What the records of a run have, in the order of the columns.
COLUMNS = {
  column.name: column
  for column in (
    number('test_accuracy', 'test accuracy', units.percent),
    number('test_loss', 'test loss'),
    number('loss', 'training loss'),
    number('accuracy', 'training accuracy', units.percent),
    number('consensus_distance', 'consensus distance'),
    number('rounds', 'rounds'),
    number('bytes_sent', 'sent per replica', units.size),
    number('bytes_to_target', 'sent to target', units.size),
    number('modeled_seconds', 'modeled time', units.duration),
    number('seconds_to_target', 'modeled time to target', units.duration),
    number('seconds', 'measured time', units.duration),
    number('step', 'steps'),
    number('epoch', 'epochs'),
    number('steps_per_second', 'steps/s'),
  )
}


class Target(NamedTuple):
  """A loss that the runs are to reach.

  Attributes:
    name: the measure.
    value: the loss.
  """

  name: str
  value: float


def target_of(runs: Sequence[figures.Run]) -> Target | None:
  """Return the lowest loss that every finished run reached.

  It is the test loss where all of them recorded it, because the loss of the
  replicas is lower than that of their average where they drift apart.
  """
  done = [run for run in runs if run.done and run.history]
  for name in ('test_loss', 'loss'):
    found = [
      [r[name] for r in run.history if math.isfinite(r.get(name, math.nan))]
      for run in done
    ]
    if done and all(found):
      return Target(name, max(map(min, found)))
  return None


def spent_until(
  history: Sequence[records.Record], target: Target | None
) -> records.Record:
  """Return what a run spent up to its first record that has the target."""
  for record in history:
    if target and record.get(target.name, math.inf) <= target.value:
      return {
        'bytes_to_target': record['bytes_sent'],
        'seconds_to_target': record['modeled_seconds'],
      }
  return {}


def method_rows(
  runs: Sequence[figures.Run], target: Target | None = None
) -> list[records.Record]:
  """Return what the seeds of each method measured and spent at their end."""
  rows, names = [], figures.differing(runs)
  for same in figures.group(runs).values():
    ended = [run for run in same if run.done and run.history]
    row: records.Record = {
      'method': same[0].label,
      **figures.settings_of(same[0], names),
      'runs': len(same),
      'done': len(ended),
      'diverged': sum(run.failed is not None for run in same),
    }
    last = [
      {**run.history[-1], **spent_until(run.history, target)} for run in ended
    ]
    # A measure that a seed lacks has no mean over the seeds.
    shared = [n for n in COLUMNS if last and all(n in one for one in last)]
    own = [n for n in last[0] if _is_own(n, last)] if last else []
    for name in [n for n in (*shared, *own) if n not in row]:
      values = [record[name] for record in last]
      mean = math.fsum(values) / len(values)
      row[name] = Spread(mean, min(values), max(values))
    rows.append(row)
  return rows


def _is_own(name: str, last: Sequence[records.Record]) -> bool:
  """Whether it is a measure of the user's own."""
  known = (*COLUMNS, 'learning_rate', 'bytes_by_tier')
  return name not in known and all(
    isinstance(record.get(name), int | float) for record in last
  )


def table(runs: Sequence[figures.Run], target: Target | None) -> Table:
  """Return the table of all methods, each over its seeds."""
  rows = method_rows(runs, target)
  for row in rows:
    row['status'] = _status(row)
  _mark_best(rows)
  settings = figures.differing(runs)
  known = (*COLUMNS, *settings, 'method', 'status', 'runs', 'done', 'diverged')
  own = dict.fromkeys(n for row in rows for n in row if n not in known)
  apart = (*_DETAILS, *MEASURES)
  columns = [
    Column('method'),
    *(Column(name, is_number=True) for name in settings),
    *(COLUMNS[name] for name in MEASURES),
    *(number(name, name) for name in own),
    Column('status', 'runs'),
    *(column for name, column in COLUMNS.items() if name not in apart),
  ]
  different, _ = report_page.split_constant(rows, columns)
  note = 'Mean over the seeds at the end of the runs, with the range below.'
  if len(rows) > 1:
    note += ' Bold: the best of the methods whose runs are all done.'
  if target is not None:
    title = COLUMNS[target.name].title
    note += (
      f' Target: {title} {target.value:.4g}, the lowest that every finished '
      'run of the figure reached.'
    )
  return report_page.table(rows, different, title='Methods', note=note)


def _status(row: records.Record) -> Chip:
  if row['diverged']:
    return Chip('no', f'{row["diverged"]} of {row["runs"]} diverged')
  if row['done'] < row['runs']:
    return Chip('partly', f'{row["done"]} of {row["runs"]} done')
  return Chip('yes', f'{row["runs"]} done')


def _mark_best(rows: Sequence[records.Record]) -> None:
  """Mark the best mean of each measure, where some are to compare.

  Only of methods whose runs are all done, because the seeds that diverged are
  not in the mean.
  """
  whole = [row for row in rows if row['done'] == row['runs']]
  for name, less in MEASURES.items():
    means = [row[name].mean for row in whole if name in row]
    means = [mean for mean in means if not math.isnan(mean)]
    if less is None or len(means) < 2:
      continue
    best = min(means) if less else max(means)
    for row in whole:
      if name in row and row[name].mean == best:
        row[name] = Best(row[name])
