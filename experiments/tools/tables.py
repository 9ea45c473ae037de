"""Tables of rows: aligned for a terminal, Markdown, CSV, and over seeds.

A row is a mapping. A list of columns names the values to show and their form,
so that every table of the project has the same cells for the same thing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import textwrap
from typing import Any, NamedTuple

import pandas as pd
import tabulate

Row = Mapping[str, Any]
# Letters of a text in a terminal, before it is wrapped.
_WIDTH = 44


class Column(NamedTuple):
  """A column of a table.

  Attributes:
    name: key of the value in a row; a row without it has an empty cell.
    title: heading; by default the name.
    show: text of a value that is not a string. Strings stay as they are.
    is_number: whether the cells are aligned to the right.
  """

  name: str
  title: str = ''
  show: Callable[[Any], str] = str
  is_number: bool = False


def _short_rule(widths: Sequence[int], aligns: Sequence[str]) -> str:
  # As long as the cells, it would have a thousand dashes on some pages.
  del aligns
  return f'|{"---|" * len(widths)}'


_BARS = tabulate.DataRow('|', '|', '|')
_MARKDOWN = tabulate.TableFormat(
  lineabove=None,
  linebelowheader=_short_rule,
  linebetweenrows=None,
  linebelow=None,
  headerrow=_BARS,
  datarow=_BARS,
  padding=1,
  with_header_hide=None,
)


def markdown(rows: Iterable[Row], columns: Sequence[Column]) -> str:
  r"""Returns a Markdown table, whose cells are as long as their text.

  Args:
    rows: of the table.
    columns: of the table.

  Example:
    >>> rows = [{'label': 'ssgd', 'loss': 0.25}]
    >>> columns = [Column('label'), Column('loss', show='{:.3f}'.format)]
    >>> markdown(rows, columns)
    '| label | loss |\n|---|---|\n| ssgd | 0.250 |\n'
  """
  frame = _frame(rows, columns).map(lambda cell: cell.replace('|', '\\|'))
  # Without alignment, because tabulate would pad the cells to align them.
  return _text(frame, _MARKDOWN, [None] * len(columns))


def aligned(rows: Iterable[Row], columns: Sequence[Column]) -> str:
  """Return a table whose columns are aligned, for a terminal.

  To be narrow, it wraps headings and long texts, and leaves out empty columns.
  """
  frame = _frame(rows, columns)
  filled = [i for i in range(len(columns)) if frame.iloc[:, i].any()]
  kept = filled if len(frame) else range(len(columns))
  frame = frame.iloc[:, list(kept)]
  frame.columns = [
    _wrapped(title, frame.iloc[:, i]) for i, title in enumerate(frame.columns)
  ]
  aligns = ['right' if columns[i].is_number else 'left' for i in kept]
  widths = [None if columns[i].is_number else _WIDTH for i in kept]
  return _text(frame, 'simple', aligns, widths)


def _wrapped(title: str, cells: Iterable[str]) -> str:
  width = max(map(len, (*title.split(), *cells)), default=1)
  return textwrap.fill(title, max(width, 1), break_on_hyphens=False)


def csv(rows: Sequence[Row], last: Sequence[str] = ()) -> str:
  r"""Returns all values of the rows as CSV, with the names as its head.

  Args:
    rows: whose missing values are empty cells. Lists and objects are JSON.
    last: names that come last, because they are long.

  Example:
    >>> csv([{'step': 1}, {'step': 2, 'loss': 0.5}])
    'step,loss\n1,\n2,0.5\n'
  """
  found = dict.fromkeys(name for row in rows for name in row)
  names = [name for name in found if name not in last]
  names += [name for name in last if name in found]
  cells = [[_exact(row.get(name)) for name in names] for row in rows]
  frame = pd.DataFrame(cells, columns=names, dtype=object)
  return frame.to_csv(index=False, na_rep='nan', lineterminator='\n')


def over_seeds(
  rows: Sequence[Row], by: Sequence[str]
) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
  """Groups rows that have the same values, in the order they appear.

  Args:
    rows: one for each run.
    by: names of the values that the runs of a group share.

  Returns:
    A list of (the shared values, the rows of the group as a frame).
  """
  frame = pd.DataFrame(rows, dtype=object)
  return list(frame.groupby(list(by), sort=False, dropna=False))


def spread(values: Iterable[float], show: Callable[[float], str]) -> str:
  """Returns the mean and the range, or one value as it is.

  Example:
    >>> spread([1.0, 2.0], '{:.1f}'.format)
    '1.5 (1.0 to 2.0)'
  """
  # NaN is kept, because a seed without a number leaves no mean.
  series = pd.Series(list(values), dtype=float)
  mean = show(series.mean(skipna=False))
  if len(series) == 1:
    return mean
  return f'{mean} ({show(series.min())} to {show(series.max())})'


def _frame(rows: Iterable[Row], columns: Sequence[Column]) -> pd.DataFrame:
  cells = [[_shown(row.get(c.name), c.show) for c in columns] for row in rows]
  titles = [c.title or c.name for c in columns]
  return pd.DataFrame(cells, columns=titles, dtype=object)


def _shown(value: Any, show: Callable[[Any], str]) -> str:
  if value is None or isinstance(value, str):
    return value or ''
  return show(value)


def _exact(value: Any) -> Any:
  if isinstance(value, dict | list | tuple):
    return json.dumps(value)
  return '' if value is None else value


def _text(
  frame: pd.DataFrame,
  style: str | tabulate.TableFormat,
  aligns: Sequence[str | None],
  widths: Sequence[int | None] | None = None,
) -> str:
  lines = frame.to_markdown(
    index=False,
    tablefmt=style,
    colalign=aligns,
    maxcolwidths=widths,
    disable_numparse=True,
  )
  return f'{lines}\n'
