"""The best value of a setting for every method, chosen over a stated grid."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from experiments.running.records import records
from experiments.tools import tables
from experiments.tools.tables import Column

# Measure of the summaries -> whether more is better.
MEASURES = {'loss': False, 'test_loss': False, 'test_accuracy': True}


def choose(
  rows: Sequence[records.Record],
  *,
  by: Sequence[str],
  over: Sequence[str],
  measure: str,
) -> list[records.Record]:
  """The best values of some settings, for every method and other setting.

  The score of a value is the mean of the measure over the seeds. A value with
  which a seed diverged, or whose mean is no number, is no candidate; where a
  run is missing the method has no best.

  Args:
    rows: of a sweep, with 'label', 'status', the settings and the measure.
    by: the settings to choose.
    over: those that tell methods apart besides the label.
    measure: one of `MEASURES`.

  Returns:
    For each method `label`, `settings`, `best` (a value of each setting, or
    None), `at_edge` (the settings whose best is the first or last of several)
    and `scores`: for each value `values`, `mean`, `least`, `most`, `runs`,
    `diverged`.

  Raises:
    ValueError: if a run that is done did not record the measure.
  """
  done = [row for row in rows if row['status'] == 'done']
  for row in done:
    if measure not in row:
      recorded = [name for name in MEASURES if all(name in r for r in done)]
      raise ValueError(
        f'--best_measure={measure} was not recorded by {row["label"]}; use '
        f'{" or ".join(recorded)}'
      )
  return [
    {
      'label': label,
      'settings': dict(zip(over, settings, strict=True)),
      **_best(same.to_dict('records'), by, measure),
    }
    for (label, *settings), same in tables.over_seeds(rows, ('label', *over))
  ]


def _best(
  rows: Sequence[records.Record], by: Sequence[str], measure: str
) -> records.Record:
  scores = [
    {
      'values': dict(zip(by, value, strict=True)),
      **_score(same.to_dict('records'), measure),
    }
    for value, same in tables.over_seeds(rows, by)
  ]
  complete = all(s['missing'] == 0 for s in scores)
  means = [math.nan if s['mean'] is None else s['mean'] for s in scores]
  sound = [s for s, mean in zip(scores, means) if not math.isnan(mean)]
  best = None
  if complete and sound:
    sign = -1 if MEASURES[measure] else 1
    best = min(sound, key=lambda s: sign * s['mean'])['values']
  edges = [] if best is None else [n for n in by if _at_edge(n, best, scores)]
  return {'best': best, 'at_edge': edges, 'scores': scores}


def _score(rows: Sequence[records.Record], measure: str) -> records.Record:
  values = [row[measure] for row in rows if row['status'] == 'done']
  diverged = sum(row['status'] == 'diverged' for row in rows)
  whole = len(values) == len(rows)
  return {
    'mean': math.fsum(values) / len(values) if whole else None,
    'least': min(values, default=None),
    'most': max(values, default=None),
    'runs': len(rows),
    'diverged': diverged,
    'missing': len(rows) - len(values) - diverged,
  }


def _at_edge(
  name: str, best: Mapping[str, str], scores: Sequence[records.Record]
) -> bool:
  """Whether a number is the least or the most of those that were tried."""
  try:
    tried = {float(score['values'][name]) for score in scores}
  except ValueError:
    return False
  return len(tried) > 1 and float(best[name]) in (min(tried), max(tried))


def format_table(chosen: Sequence[records.Record], measure: str) -> str:
  """Markdown: one row for every method, with all the values that were tried."""
  tried = f'{measure} of every value (mean over seeds)'
  columns = [Column('method'), Column('best'), Column('tried', tried)]
  return tables.markdown(map(_row, chosen), columns)


def _row(method: records.Record) -> dict[str, str]:
  settings = [f'{n}={v}' for n, v in method['settings'].items() if v != '']
  best = 'not all runs are done, or all diverged'
  if method['best'] is not None:
    best = _pairs(method['best'])
  if method['at_edge']:
    best += ' (at the edge of the grid)'
  tried = ', '.join(
    f'{_pairs(s["values"])}: {_shown(s)}' for s in method['scores']
  )
  label = ' '.join([method['label'], *settings])
  return {'method': label, 'best': best, 'tried': tried}


def _pairs(values: Mapping[str, Any]) -> str:
  return ' '.join(f'{name}={value}' for name, value in values.items())


def _shown(score: records.Record) -> str:
  if score['mean'] is not None:
    return f'{score["mean"]:.4g}'
  if score['missing']:
    return f'{score["missing"]} of {score["runs"]} runs missing'
  return f'{score["diverged"]} of {score["runs"]} runs diverged'
