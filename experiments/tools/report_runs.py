"""The section of a report on runs: their figure, then their tables."""

from collections.abc import Mapping, Sequence
import pathlib
import re
import tempfile

from experiments.running.records import json_files, records
from experiments.tools import (
  figures,
  measures,
  report_methods,
  report_page,
  report_rows,
  report_tuning,
)
from experiments.tools.report_page import Section


def section(
  path: pathlib.Path, x: Sequence[str], y: Sequence[str], band: str
) -> Section:
  """Return the figure and the tables of the runs in and below a directory.

  Raises:
    ValueError: if there are none, or a file is damaged.
  """
  workdirs = figures.find_runs([path])
  runs = figures.read_runs(workdirs)
  best = json_files.read(path / 'best.json', report_tuning.FORM)
  rows = report_rows.read_csv(path / 'sweep.csv')
  chosen = report_tuning.chosen(runs, workdirs, best, rows)
  caption = _caption(chosen or runs, x, y, band)
  if best is not None and chosen:
    caption += f' Each method has its best {", ".join(best["by"])}.'
  with tempfile.TemporaryDirectory() as directory:
    drawn = pathlib.Path(directory) / 'figure.png'
    figures.draw(chosen or runs, drawn, x=x, y=y, band=band)
    figure = report_page.image(drawn, caption)
  made = [report_methods.table(runs, report_methods.target_of(chosen or runs))]
  if best is not None:
    made.append(report_tuning.table(best))
  every = rows or report_rows.rows_of(runs, workdirs)
  listed, facts = report_rows.table(every)
  return Section(
    anchor=str(path),
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
