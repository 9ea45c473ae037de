r"""Writes an HTML page of a sweep, of any runs, or of all reproductions.

  python experiments/report.py runs/sweep --output=report.html
  python experiments/report.py --reproductions

One file that needs no server and no network: its figures are inside, its tables
are sorted by a click. Of runs it has the figures that --x and --y name, as of
plot.py, a table of every method over its seeds, the best values that a sweep
chose, and a table of all runs. Reproductions are read from
experiments/results/reproduce, a .json with the claims and the .png of the same
name each.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import base64
from collections.abc import Iterable, Mapping, Sequence
import csv
import hashlib
import html
import io
import math
import tempfile
from typing import Any

from absl import flags

from experiments import plot
from experiments.running.flags import cli
from experiments.running.records import json_files, records, writing
from experiments.tools import figures

FLAGS = flags.FLAGS
HERE = pathlib.Path(__file__).parent

flags.adopt_module_key_flags(plot)
flags.DEFINE_bool(
  'reproductions', False, 'Report the reproductions, with any runs given.'
)
flags.DEFINE_string(
  'reproductions_dir',
  str(HERE / 'results' / 'reproduce'),
  'Where their .json and .png files are.',
)

# What a claim may be found to be -> how it is shown.
VERDICTS = {'yes': 'reproduced', 'partly': 'partly', 'no': 'not reproduced'}
# Of a reproduction: fields that have a place of their own, and its curves.
_PLACED = ('name', 'title', 'claims', 'data')

# The forms of the files: any other is an error.
_REPRODUCTION = json_files.object_of(
  {
    'name': json_files.text,
    'title': json_files.text,
    'claims': json_files.list_of(
      json_files.object_of(
        {
          'says': json_files.anything,
          'measured': json_files.anything,
          'reproduced': json_files.one_of(*VERDICTS),
        }
      )
    ),
  }
)
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

_PNG = b'\x89PNG\r\n\x1a\n'

_SCRIPT = """
'use strict';
// A click on a head sorts by its column: as numbers where both cells are, and
// with empty cells last.
function compare(a, b) {
  if (a === '' || b === '') return (a === '') - (b === '');
  const x = Number(a), y = Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}
for (const head of document.querySelectorAll('th')) {
  head.querySelector('button').addEventListener('click', () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    for (const other of head.parentNode.children)
      other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const body = head.closest('table').tBodies[0];
    const key = row => row.cells[head.cellIndex].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(key(a), key(b));
      return up || key(a) === '' || key(b) === '' ? order : -order;
    });
    body.append(...rows);
  });
}
"""

# A browser runs no other script: a hash admits this one.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2em auto;
  max-width: 75em; padding: 0 1em; color: #222; background: #fff; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ border: 1px solid #ccc; padding: .25em .6em; text-align: left;
  vertical-align: top; }}
th {{ background: #f2f2f2; }}
th button {{ all: unset; cursor: pointer; }}
th button:focus-visible {{ outline: 2px solid #36c; }}
th[aria-sort=ascending] button::after {{ content: " \\25b2"; }}
th[aria-sort=descending] button::after {{ content: " \\25bc"; }}
.yes {{ background: #dff3df; }}
.partly {{ background: #fff3cf; }}
.no {{ background: #f9dcdc; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{script}</script>
</body>
</html>
"""


def main(*paths: str) -> None:
  with cli.one_line_errors(ValueError):
    plot.check()
    if not paths and not FLAGS.reproductions:
      raise ValueError(
        'report.py needs directories of runs, as report.py runs/sweep, or '
        '--reproductions'
      )
    sections = []
    if FLAGS.reproductions:
      sections += reproduction_sections(pathlib.Path(FLAGS.reproductions_dir))
    sections += [run_section(pathlib.Path(path)) for path in paths]
    title = (
      'Reproductions' if FLAGS.reproductions else f'Runs of {", ".join(paths)}'
    )
    output = pathlib.Path(FLAGS.output or 'report.html')
    try:
      output.parent.mkdir(parents=True, exist_ok=True)
      # A file's name need not be UTF-8.
      text = page(title, sections).encode(errors='replace').decode()
      writing.write_text(output, text)
    except OSError as error:
      raise ValueError(
        f'{output} cannot be written ({error.strerror}); pass another --output'
      ) from error
  print(f'report: {output}')


def page(title: str, sections: Sequence[str]) -> str:
  """A whole page, of sections that are HTML."""
  digest = hashlib.sha256(_SCRIPT.encode()).digest()
  return _PAGE.format(
    title=html.escape(title),
    body='\n'.join(sections),
    script=_SCRIPT,
    digest=base64.b64encode(digest).decode(),
  )


def run_section(path: pathlib.Path) -> str:
  """Figures and tables of the runs in and below a directory.

  Raises:
    ValueError: if there are none, or a file is damaged.
  """
  runs = figures.read_runs(figures.find_runs([path]))
  best = json_files.read(path / 'best.json', _BEST)
  rows = _read_table(path / 'sweep.csv')
  parts = [f'<h2>{html.escape(str(path))}</h2>']
  with tempfile.TemporaryDirectory() as directory:
    drawn = pathlib.Path(directory) / 'figure.png'
    figures.draw(runs, drawn, x=FLAGS.x, y=FLAGS.y, band=FLAGS.band)
    against = f'{", ".join(FLAGS.y)} against {", ".join(FLAGS.x)}'
    parts.append(image(drawn, f'Of {path}: {against}'))
  parts.append('<h3>Methods</h3>')
  parts.append(
    '<p>At the end of the runs: the mean over the seeds, and from least to '
    'most. A run that diverged or is not done yet is not in the mean.</p>'
  )
  parts.append(table(method_rows(runs)))
  if best is not None:
    parts.append(_best_part(best))
  if rows is not None:
    parts += ['<h3>Runs</h3>', table(rows)]
  return '\n'.join(parts)


def method_rows(runs: Sequence[figures.Run]) -> list[records.Record]:
  """One row for each method: what its seeds measured and spent at their end."""
  rows = []
  for label, same in figures.group(runs).items():
    ended = [run for run in same if run.done]
    last = [run.history[-1] for run in ended]
    row: records.Record = {
      'method': label,
      'runs': len(same),
      'done': len(ended),
      'diverged': sum(run.failed is not None for run in same),
    }
    names = ('loss', 'test_loss', 'test_accuracy', 'consensus_distance')
    spent = ('step', 'epoch', 'rounds', 'bytes_sent', 'modeled_seconds')
    for name in (*names, *spent) if last else ():
      values = [record[name] for record in last if name in record]
      if values:
        row[name] = math.fsum(values) / len(values)
        if name in names and len(values) > 1:
          row[f'{name} least to most'] = (
            f'{min(values):.4g} to {max(values):.4g}'
          )
    rows.append(row)
  return rows


def _best_part(best: Mapping[str, Any]) -> str:
  rows = []
  for method in best['methods']:
    chosen = method['best']
    for score in method['scores']:
      rows.append(
        {
          'method': method['label'],
          **method['settings'],
          **score['values'],
          f'mean {best["measure"]}': score['mean'],
          'least': score['least'],
          'most': score['most'],
          'runs': score['runs'],
          'diverged': score['diverged'],
          'best': 'best' if score['values'] == chosen else '',
          'at the edge of the grid': ', '.join(method['at_edge'])
          if score['values'] == chosen
          else '',
        }
      )
  grid = html.escape(' '.join(f'--grid={axis}' for axis in best['grid']))
  return (
    f'<h3>Best {html.escape(", ".join(best["by"]))} of every method</h3>\n'
    f'<p>By the mean {html.escape(best["measure"])} over the seeds, on the '
    f'grid <code>{grid}</code>.</p>\n{table(rows)}'
  )


def reproduction_sections(directory: pathlib.Path) -> list[str]:
  """A table of all reproductions, and a section for each.

  Raises:
    ValueError: if there is none, or a file is not of that form.
  """
  found = [
    (path, json_files.read(path, _REPRODUCTION))
    for path in sorted(directory.glob('*.json'))
  ]
  if not found:
    raise ValueError(
      f'there is no reproduction in {directory}; run some, or pass another '
      '--reproductions_dir'
    )
  rows = []
  for _, one in found:
    verdicts = [claim['reproduced'] for claim in one['claims']]
    rows.append(
      {
        'name': one['name'],
        'title': one['title'],
        'paper': one.get('paper', ''),
        'scale': one.get('scale', ''),
        'claims': len(verdicts),
        **{shown: verdicts.count(v) for v, shown in VERDICTS.items()},
      }
    )
  return [table(rows), *(_reproduction(path, one) for path, one in found)]


def _reproduction(path: pathlib.Path, one: Mapping[str, Any]) -> str:
  """Title, claims, figure, and whatever else is known; not the curves."""
  stem, title = html.escape(path.stem), html.escape(one['title'])
  parts = [f'<h2 id="{stem}">{stem}: {title}</h2>']
  claims = [
    {
      'the paper says': claim['says'],
      'measured': claim['measured'],
      'reproduced': claim['reproduced'],
      'tried': claim.get('tried', ''),
    }
    for claim in one['claims']
  ]
  parts.append(table(claims))
  picture = path.with_suffix('.png')
  if picture.exists():
    parts.append(image(picture, one['title']))
  rest = {key: value for key, value in one.items() if key not in _PLACED}
  listed = [(k, v) for k, v in rest.items() if _is_table(v)]
  parts += [f'<h3>{html.escape(k)}</h3>\n{table(v)}' for k, v in listed]
  facts = [
    {'of the run': k, 'value': _fact(v)}
    for k, v in rest.items()
    if not _is_table(v)
  ]
  if facts:
    parts.append(table(facts))
  return '\n'.join(parts)


def _is_table(value: Any) -> bool:
  """Whether it is a list of flat rows."""
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(row, dict) for row in value)
  )


def _fact(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{k}: {_fact(v)}' for k, v in value.items())
  if isinstance(value, list):
    return ', '.join(map(_fact, value))
  return str(value)


def image(path: pathlib.Path, caption: str) -> str:
  """An <img> with the PNG inside of it."""
  png = json_files.read_bytes(path)
  if png is None or not png.startswith(_PNG):
    raise json_files.damaged(path, 'it is no PNG')
  data = base64.b64encode(png).decode()
  text = html.escape(caption)
  return f'<p><img src="data:image/png;base64,{data}" alt="{text}"></p>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A table of rows by column; a column that no row fills is left out."""
  columns = dict.fromkeys(
    name for row in rows for name, value in row.items() if _filled(value)
  )
  head = ''.join(
    f'<th scope="col"><button type="button">{html.escape(name)}</button></th>'
    for name in columns
  )
  body = '\n'.join(_table_row(row, columns) for row in rows)
  return (
    f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
    f'<tbody>\n{body}\n</tbody></table></div>'
  )


def _filled(value: Any) -> bool:
  return value is not None and value != ''


def _table_row(row: Mapping[str, Any], columns: Iterable[str]) -> str:
  cells = []
  for name in columns:
    value = row.get(name)
    exact = '' if value is None else str(value)
    verdict = name == 'reproduced' and exact in VERDICTS
    kind = f' class="{exact}"' if verdict else ''
    shown = html.escape(_shown(exact))
    cells.append(f'<td{kind} data-value="{html.escape(exact)}">{shown}</td>')
  return f'<tr>{"".join(cells)}</tr>'


def _shown(exact: str) -> str:
  """Fractions with four digits; what is sorted by is exact."""
  if '.' not in exact and 'e' not in exact:
    return exact
  try:
    return f'{float(exact):.4g}'
  except ValueError:
    return exact


def _read_table(path: pathlib.Path) -> list[dict[str, str]] | None:
  """The rows of a CSV file with a head, None where there is no such file.

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


if __name__ == '__main__':
  cli.run(main)
