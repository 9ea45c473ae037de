"""The section of a report on runs: their figure, methods, and every run."""

from collections.abc import Mapping, Sequence
import csv
import io
import math
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

from experiments.running.records import json_files, records, units
from experiments.tools import figures, measures, report_page
from experiments.tools.report_page import (
  Best,
  Chip,
  Section,
  Spread,
  Table,
  Titled,
)
from experiments.tools.tables import Column

_SCORE = {
  'values': json_files.object_of({}),
  'runs': json_files.count,
  'diverged': json_files.count,
  **dict.fromkeys(
    ('mean', 'least', 'most'), json_files.optional(json_files.number)
  ),
}
_BEST = json_files.object_of(
  {
    'measure': json_files.text,
    **dict.fromkeys(('by', 'grid'), json_files.list_of(json_files.text)),
    'methods': json_files.list_of(
      json_files.object_of(
        {
          'label': json_files.text,
          'settings': json_files.object_of({}),
          'best': json_files.optional(json_files.object_of({})),
          'at_edge': json_files.list_of(json_files.text),
          'scores': json_files.list_of(json_files.object_of(_SCORE)),
        }
      )
    ),
  }
)


def _number(name: str, title: str, show: Any = units.number) -> Column:
  return Column(name, title, show, is_number=True)


# Measures at the end of a run -> whether less is better.
MEASURES = {
  'test_accuracy': False, 'test_loss': True, 'loss': True,
  'consensus_distance': None,
}  # fmt: skip
# In the table of the runs only, because that of the methods is wide enough.
_DETAILS = (
  'accuracy', 'seconds', 'steps_per_second', 'seconds_to_first_steps',
)  # fmt: skip
# What the records of a run have, in the order of the columns.
_COLUMNS = {
  column.name: column
  for column in (
    _number('test_accuracy', 'test accuracy', units.percent),
    _number('test_loss', 'test loss'),
    _number('loss', 'training loss'),
    _number('accuracy', 'training accuracy', units.percent),
    _number('consensus_distance', 'consensus distance'),
    _number('rounds', 'rounds'),
    _number('bytes_sent', 'sent per replica', units.size),
    _number('bytes_to_target', 'sent to target', units.size),
    _number('modeled_seconds', 'modeled time', units.duration),
    _number('seconds_to_target', 'modeled time to target', units.duration),
    _number('seconds', 'measured time', units.duration),
    _number('step', 'steps'),
    _number('epoch', 'epochs'),
    _number('steps_per_second', 'steps/s'),
    _number('seconds_to_first_steps', 'time to first steps', units.duration),
    _number('final_learning_rate', 'final learning rate'),
  )
}
STATUS = {
  'done': Chip('yes', 'done'),
  'diverged': Chip('no', 'diverged'),
  'failed': Chip('no', 'failed'),
  'missing': Chip('partly', 'not done'),
}
# Of sweep.csv: what is in the title of a row, or in another column.
_MACHINE = ('replicas', 'cpus', 'device', 'jax', 'commit')
_PLACED = ('label', 'algorithm', 'status', 'directory', 'failed')


class Target(NamedTuple):
  """A loss that the runs are to reach.

  Attributes:
    name: the measure.
    value: the loss.
  """

  name: str
  value: float


def section(
  path: pathlib.Path, x: Sequence[str], y: Sequence[str], band: str
) -> Section:
  """Return the figure and the tables of the runs in and below a directory.

  Raises:
    ValueError: if there are none, or a file is damaged.
  """
  workdirs = figures.find_runs([path])
  runs = figures.read_runs(workdirs)
  best = json_files.read(path / 'best.json', _BEST)
  rows = _read_csv(path / 'sweep.csv')
  chosen = _chosen(runs, workdirs, best, rows)
  caption = _caption(chosen or runs, x, y, band)
  if best is not None and chosen:
    caption += f' Each method has its best {", ".join(best["by"])}.'
  with tempfile.TemporaryDirectory() as directory:
    drawn = pathlib.Path(directory) / 'figure.png'
    figures.draw(chosen or runs, drawn, x=x, y=y, band=band)
    figure = report_page.image(drawn, caption)
  made = [_methods(runs, target_of(chosen or runs))]
  if best is not None:
    made.append(_best(best))
  listed, facts = _runs(rows or _rows(runs, workdirs))
  return Section(
    anchor=path.name or 'runs',
    title=f'Runs in {path.name or path}',
    subtitle=str(path),
    figures=[figure],
    facts=facts,
    tables=[*made, listed],
  )


def machines(paths: Sequence[pathlib.Path]) -> dict[str, str]:
  """Return what the runs below these paths were measured with."""
  found = [records.read_summary(w) for w in figures.find_runs(paths)]
  done = [summary for summary in found if summary is not None]
  return {
    'machine': report_page.joined(
      f'{s["cpus"]} {s["device"]} cores' if s['cpus'] else s['device']
      for s in done
    ),
    'JAX': report_page.joined(s['jax'] for s in done),
    'commit': report_page.joined(s['commit'] for s in done),
  }


def _chosen(
  runs: Sequence[figures.Run],
  workdirs: Sequence[pathlib.Path],
  best: Mapping[str, Any] | None,
  rows: Sequence[Mapping[str, str]] | None,
) -> list[figures.Run]:
  """Return the runs of each method's best values; none if a method has none."""
  names: set[str] = set()
  for method in best['methods'] if best else ():
    place = {'label': method['label'], **method['settings']}
    place |= method['best'] or {}
    found = [
      pathlib.Path(row['directory']).name
      for row in rows or ()
      if all(row.get(name) == value for name, value in place.items())
      and 'directory' in row
    ]
    if not found or method['best'] is None:
      return []
    names.update(found)
  return [run for run, w in zip(runs, workdirs) if w.name in names]


def _caption(
  runs: Sequence[figures.Run], x: Sequence[str], y: Sequence[str], band: str
) -> str:
  bands = {
    'range': 'bands from the lowest to the highest seed',
    'std': 'bands of one standard deviation over the seeds',
    'none': 'means over the seeds',
  }
  seeds = len({run.seed for run in runs})
  over = f'; {bands[band]}' if seeds > 1 else ''
  shown = f'{_named(y, measures.Y)} against {_named(x, measures.X)}'
  return (
    f'{shown[0].upper()}{shown[1:]}. {len(runs)} runs, '
    f'{seeds} {"seeds" if seeds > 1 else "seed"}{over}.'
  )


def _named(names: Sequence[str], known: Mapping[str, measures.Scale]) -> str:
  """Return the measures as a list in words, without their units."""
  titles = [known[n].title if n in known else n for n in names]
  words = [re.split('[,\n]', title)[0] for title in titles]
  return ' and '.join(filter(None, (', '.join(words[:-1]), words[-1])))


def target_of(runs: Sequence[figures.Run]) -> Target | None:
  """Return the lowest loss that every finished run reached.

  It is the test loss where all of them recorded it, because the loss of the
  replicas is lower than that of their average where they drift apart.
  """
  done = [run for run in runs if run.done and run.history]
  for name in ('test_loss', 'loss'):
    found = [[r[name] for r in run.history if name in r] for run in done]
    if done and all(found):
      reached = max(min(losses) for losses in found)
      return Target(name, reached) if math.isfinite(reached) else None
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
  """One row for each method: what its seeds measured and spent at their end."""
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
    shared = [n for n in _COLUMNS if last and all(n in one for one in last)]
    own = [n for n in last[0] if _is_own(n, last)] if last else []
    for name in (*shared, *own):
      values = [record[name] for record in last]
      mean = math.fsum(values) / len(values)
      row[name] = Spread(mean, min(values), max(values))
    rows.append(row)
  return rows


def _is_own(name: str, last: Sequence[records.Record]) -> bool:
  """Whether it is a measure of the user's own."""
  known = (*_COLUMNS, 'learning_rate', 'bytes_by_tier')
  return name not in known and all(
    isinstance(record.get(name), int | float) for record in last
  )


def _methods(runs: Sequence[figures.Run], target: Target | None) -> Table:
  rows = method_rows(runs, target)
  for row in rows:
    row['status'] = _status(row)
  _mark_best(rows)
  settings = figures.differing(runs)
  known = (*_COLUMNS, *settings, 'method', 'status', 'runs', 'done', 'diverged')
  own = dict.fromkeys(n for row in rows for n in row if n not in known)
  apart = (*_DETAILS, *MEASURES)
  columns = [
    Column('method'),
    *(Column(name, is_number=True) for name in settings),
    *(_COLUMNS[name] for name in MEASURES),
    *(_number(name, name) for name in own),
    Column('status', 'runs'),
    *(column for name, column in _COLUMNS.items() if name not in apart),
  ]
  different, _ = report_page.split_constant(rows, columns)
  note = 'Mean over the seeds at the end of the runs, with the range below.'
  note += ' Bold: the best of the column.' if len(rows) > 1 else ''
  if target is not None:
    title = _COLUMNS[target.name].title
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
  """Mark the best mean of each measure, where some are to compare."""
  for name, less in MEASURES.items():
    means = [row[name].mean for row in rows if name in row]
    means = [mean for mean in means if not math.isnan(mean)]
    if less is None or len(means) < 2:
      continue
    best = min(means) if less else max(means)
    for row in rows:
      if name in row and row[name].mean == best:
        row[name] = Best(row[name])


def _best(best: Mapping[str, Any]) -> Table:
  rows = []
  for method in best['methods']:
    for score in method['scores']:
      is_best = score['values'] == method['best']
      mean = score['mean']
      rows.append(
        {
          'method': method['label'],
          **method['settings'],
          **score['values'],
          best['measure']: None
          if mean is None
          else Spread(mean, score['least'], score['most']),
          'runs': score['runs'],
          'diverged': score['diverged'],
          'best': Chip('yes', 'best') if is_best else '',
          'edge': ', '.join(method['at_edge']) if is_best else '',
        }
      )
  measure = _COLUMNS.get(best['measure'], Column(best['measure']))
  settings = dict.fromkeys(
    n for m in best['methods'] for s in m['scores']
    for n in (*m['settings'], *s['values'])
  )  # fmt: skip
  columns = [
    Column('method'),
    *(Column(name, is_number=True) for name in settings),
    measure._replace(name=best['measure'], is_number=True),
    Column('best'),
    Column('edge', 'at the edge of the grid'),
    Column('runs', is_number=True),
    Column('diverged', is_number=True),
  ]
  grid = ' '.join(f'--grid={axis}' for axis in best['grid'])
  return report_page.table(
    rows,
    columns,
    title=f'Best {", ".join(best["by"])} of each method',
    note=f'By the mean {measure.title or measure.name} over the seeds, from '
    f'{grid}.',
  )


def _runs(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[Table, list[tuple[str, str]]]:
  """Return the table of all runs, and what they have in common."""
  rest = dict.fromkeys(
    n for row in rows for n in row if n not in (*_PLACED, *_COLUMNS, *_MACHINE)
  )
  settings = [n for n in rest if not _is_in_label(n, rows)]
  columns = [
    Column('run', 'method'),
    *(_number(name, name, str) for name in settings if name[:6] != 'bytes_'),
    Column('shown', 'status'),
    *_COLUMNS.values(),
    *(_tier(name) for name in settings if name[:6] == 'bytes_'),
    Column('failed', 'reason'),
  ]
  made = [
    {
      **{name: _value(name, value) for name, value in row.items()},
      'run': Titled(row.get('label', ''), row.get('directory', '')),
      'shown': STATUS.get(row.get('status', ''), row.get('status')),
    }
    for row in rows
  ]
  different, facts = report_page.split_constant(made, columns)
  machine = {
    name: report_page.joined(row[name] for row in rows if row.get(name))
    for name in _MACHINE
  }
  facts += report_page.as_facts(machine)
  return report_page.table(made, different, title='Runs'), facts


def _is_in_label(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
  """Whether it is an option of algorithms, which their labels have."""
  filled = [row for row in rows if row.get(name) not in (None, '')]
  return all(f'{name}={row[name]}' in row.get('label', '') for row in filled)


def _tier(name: str) -> Column:
  return _number(name, f'sent, {name.rpartition(".")[2]} links', units.size)


def _value(name: str, text: Any) -> Any:
  """Return the number in a cell of a column that has numbers."""
  has_numbers = name in _COLUMNS or name.startswith('bytes_')
  if not (has_numbers and isinstance(text, str)):
    return text
  try:
    return float(text) if set(text) & set('.en') else int(text)
  except ValueError:
    return text


def _rows(
  runs: Sequence[figures.Run], workdirs: Sequence[pathlib.Path]
) -> list[records.Record]:
  """Return a row for each run, as of sweep.csv."""
  labels = {
    id(run): label
    for label, same in figures.group(runs).items()
    for run in same
  }
  return [
    {
      'label': labels[id(run)],
      'seed': run.seed,
      'status': _status_of(run),
      **(run.history[-1] if run.history else {}),
      'failed': run.failed,
      'directory': str(workdir),
    }
    for run, workdir in zip(runs, workdirs, strict=True)
  ]


def _status_of(run: figures.Run) -> str:
  if run.failed is not None:
    return 'diverged'
  return 'done' if run.done else 'missing'


def _read_csv(path: pathlib.Path) -> list[dict[str, str]] | None:
  """Return the rows of a CSV file with a head, None where there is no file.

  Raises:
    DamagedFile: if it is none.
  """
  data = json_files.read_bytes(path)
  if data is None:
    return None
  try:
    text = io.StringIO(data.decode(), newline='')
    rows = list(csv.DictReader(text, strict=True))
  except (ValueError, csv.Error) as error:
    raise json_files.damaged(path, str(error)) from error
  for i, row in enumerate(rows, 1):
    if None in row or None in row.values():
      raise json_files.damaged(path, f'row {i} is longer or shorter than row 0')
  return rows
