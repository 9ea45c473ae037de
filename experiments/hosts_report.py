"""Write the table and the figure of the measurements on several hosts.

  python experiments/hosts_report.py

It reads the files that hosts_benchmark.py wrote, models the time and the bytes
of the same steps by the ledger, and writes table.md and measured.png beside
them.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.hosts import comparing, directory
from experiments.hosts.cases import CASES
from experiments.hosts.comparing import Row, Spread
from experiments.running.flags import cli
from experiments.running.records import writing
from experiments.tools import (
  disturbances,
  drawing,
  figure_files,
  styles,
  tables,
)
from experiments.tools.tables import Column

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(directory)

# Rate of the links of the left panel, in bits per second.
SHOWN = 100e6
_TITLES = {
  'algorithm': 'algorithm',
  'measured': 'ms per step, measured (quartiles)',
  'modeled': 'modeled',
  'ratio': 'measured / modeled',
  'wire': 'kB per step on the wire',
  'payload': 'kB without headers',
  'ledger': 'kB in the ledger',
  'bytes_ratio': 'kB without headers / ledger',
  'target': f'seconds to a test error of {comparing.TARGET:g}%',
}


def main() -> None:
  with cli.one_line_errors(ValueError):
    place = pathlib.Path(FLAGS.measurements)
    measured = comparing.read(place)
    text = table(measured)
    figure_files.save(draw(measured), place / 'measured.png')
  writing.write_text(place / 'table.md', text)
  print(text)


def table(measured: Sequence[Mapping[str, Any]]) -> str:
  """Return a Markdown table for each rate, with the conditions above it."""
  rows = comparing.rows(measured)
  columns = [
    Column(name, title, is_number=name != 'algorithm')
    for name, title in _TITLES.items()
  ]
  parts = []
  for one in measured:
    rate = one['bits_per_second']
    cells = [_cells(row) for row in rows if row.bits_per_second == rate]
    parts.append(f'{_conditions(one)}\n\n{tables.markdown(cells, columns)}')
  return '\n'.join(parts)


def _conditions(measured: Mapping[str, Any]) -> str:
  """Return a paragraph on the links, the machine and the disturbances."""
  machine, others = measured['machine'], measured['others']
  rate = measured['bits_per_second'] / 1e6
  kept = disturbances.undisturbed(others)
  words = (
    f'**{rate:g} Mb/s**, {measured["hosts"]} hosts; a message of 4 bytes '
    f'takes {measured["latency"] * 1e3:.2f} ms. '
    f'{len(kept)} of {len(others)} rounds count. Measured on '
    f'{measured["date"]} with {machine["cpus"]} {machine["processor"]} cores '
    f'per machine, JAX {machine["jax"]}, Python {machine["python"]}, commit '
    f'{machine["commit"]}.'
  )
  if disturbances.is_disturbed(others):
    words += (
      f' **Other programs used up to {max(others):.0%} of the processors.**'
    )
  return words


def _cells(row: Row) -> dict[str, str]:
  """Return the texts of a row of the table."""
  alone = not row.modeled_bytes
  return {
    'algorithm': row.case.label,
    'measured': _milliseconds(row.seconds),
    'modeled': '' if alone else _three(row.modeled_seconds * 1e3),
    'ratio': '' if alone else f'{row.seconds.median / row.modeled_seconds:.2f}',
    'wire': f'{row.on_wire / 1e3:.1f}',
    'payload': f'{row.payload / 1e3:.1f}',
    'ledger': f'{row.modeled_bytes / 1e3:.1f}',
    'bytes_ratio': '' if alone else f'{row.payload / row.modeled_bytes:.3f}',
    'target': '' if row.to_target is None else _three(row.to_target[1]),
  }


def _milliseconds(seconds: Spread) -> str:
  median, low, high = (_three(1e3 * x) for x in seconds)
  return f'{median} ({low} to {high})'


def _three(value: float) -> str:
  """Return a number with three digits, or more before the point."""
  return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def draw(measured: Sequence[Mapping[str, Any]]) -> Figure:
  """Return the figure: errors over seconds, and seconds over the rates."""
  looks = styles.looks({case.label: case.method for case in CASES})
  with drawing.look():
    figure = Figure(figsize=(9, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    _draw_errors(left, measured, looks)
    _draw_seconds(right, measured, looks)
    drawing.legend_below(figure)
  return figure


def _draw_errors(
  axis: Axes,
  measured: Sequence[Mapping[str, Any]],
  looks: Mapping[str, styles.Style],
) -> None:
  """Draw the test error of the averaged model over the measured seconds."""
  shown = min(measured, key=lambda one: abs(one['bits_per_second'] - SHOWN))
  for case in CASES[1:]:
    found = comparing.history(shown, case)
    _, seconds, errors = zip(*found, strict=True) if found else ((), (), ())
    drawing.curve(axis, seconds, errors, looks[case.label], label=case.label)
  drawing.log(axis, 'x')
  drawing.log(axis, 'y')
  axis.set_xlabel('seconds, measured')
  axis.set_ylabel('test error of the average, %')
  axis.set_title(f'links of {shown["bits_per_second"] / 1e6:g} Mb/s')


def _draw_seconds(
  axis: Axes,
  measured: Sequence[Mapping[str, Any]],
  looks: Mapping[str, styles.Style],
) -> None:
  """Draw the seconds per step over the rates, and the model as dashes."""
  rows = comparing.rows(measured)
  for case in CASES:
    own = [row for row in rows if row.case.label == case.label]
    rates = [row.bits_per_second / 1e6 for row in own]
    style = looks[case.label]
    modeled = style._replace(linestyle='--', marker='')
    drawing.curve(axis, rates, [r.modeled_seconds for r in own], modeled)
    median, low, high = zip(*(row.seconds for row in own), strict=True)
    points = style._replace(linestyle='none')
    drawing.curve(
      axis, rates, median, points, low=low, high=high, label=case.label
    )
  drawing.log(axis, 'x')
  drawing.log(axis, 'y')
  axis.set_xlabel('rate of the links, Mb/s')
  axis.set_ylabel('seconds per step')
  axis.set_title('markers: measured; dashes: modeled by the ledger')


if __name__ == '__main__':
  cli.run(main)
