"""The table of every run in a report."""

from collections.abc import Mapping, Sequence
import csv
import io
import pathlib
from typing import Any

from experiments.running.records import json_files, records, units
from experiments.tools import figures, report_page
from experiments.tools.report_methods import COLUMNS, number
from experiments.tools.report_page import Chip, Table, Titled
from experiments.tools.tables import Column

STATUS = {
  'done': Chip('yes', 'done'),
  'diverged': Chip('no', 'diverged'),
  'failed': Chip('no', 'failed'),
  'missing': Chip('partly', 'not done'),
}
# Of sweep.csv: what is the same for all runs as a rule, below the table.
_MACHINE = ('replicas', 'cpus', 'device', 'jax', 'commit')
# What is in another column, in the title of a row, or a detail.
_PLACED = (
  'label', 'algorithm', 'status', 'directory', 'failed',
  'seconds_to_first_steps', 'final_learning_rate',
)  # fmt: skip


def table(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[Table, list[tuple[str, str]]]:
  """Return the table of all runs, and what they have in common."""
  rest = dict.fromkeys(
    n for row in rows for n in row if n not in (*_PLACED, *COLUMNS, *_MACHINE)
  )
  settings = [n for n in rest if not _is_in_label(n, rows)]
  columns = [
    Column('run', 'method'),
    *(number(name, name, str) for name in settings if name[:6] != 'bytes_'),
    Column('shown', 'status'),
    *COLUMNS.values(),
    *(_tier(name) for name in settings if name[:6] == 'bytes_'),
    Column('failed', 'why it failed'),
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
  return number(name, f'sent, {name.rpartition(".")[2]} links', units.size)


def _value(name: str, text: Any) -> Any:
  """Return the number in a cell of a column that has numbers."""
  has_numbers = name in COLUMNS or name.startswith('bytes_')
  if not (has_numbers and isinstance(text, str)):
    return text
  try:
    return float(text) if set(text) & set('.en') else int(text)
  except ValueError:
    return text


def rows_of(
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


def read_csv(path: pathlib.Path) -> list[dict[str, str]] | None:
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
