"""The best values of a tuned sweep in a report: their table and their runs."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from experiments.running.records import json_files
from experiments.tools import figures, report_page
from experiments.tools.report_methods import COLUMNS
from experiments.tools.report_page import Chip, Spread, Table
from experiments.tools.tables import Column

_SCORE = {
  'values': json_files.object_of({}),
  'runs': json_files.count,
  'diverged': json_files.count,
  **dict.fromkeys(
    ('mean', 'least', 'most'), json_files.optional(json_files.number)
  ),
}
FORM = json_files.object_of(
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


def chosen(
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


def table(best: Mapping[str, Any]) -> Table:
  """Return the table of all values that were tried."""
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
  measure = COLUMNS.get(best['measure'], Column(best['measure']))
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
