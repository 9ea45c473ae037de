"""Format tables for a terminal, Markdown and CSV, and group rows by seed.

A row is a mapping. A list of columns selects the values to show and their form,
so that all tables of the project format a value identically.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import textwrap
from typing import Any, NamedTuple

import pandas as pd
import tabulate

Row = Mapping[str, Any]
# Width in characters at which text in a terminal is wrapped.
_WIDTH = 44


class Column(NamedTuple):
  """A column of a table.

  Attributes:
    name: key of the value in a row; a row without the key has an empty cell.
    title: heading; '' for the name.
    show: function that formats a value; strings are not formatted.
    is_number: whether to align the cells to the right.
  """

  name: str
  title: str = ''
  show: Callable[[Any], str] = str
  is_number: bool = False


def _short_rule(widths: Sequence[int], aligns: Sequence[str]) -> str:
  # Short, because a rule as long as the cells could have a thousand dashes.
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
  r"""Return a Markdown table, with numbers to the right and no padding.

  Args:
    rows: rows of the table.
    columns: columns of the table.

  Example:
    >>> rows = [{'label': 'ssgd', 'loss': 0.25}]
    >>> columns = [Column('label'), Column('loss', show='{:.3f}'.format)]
    >>> markdown(rows, columns)
    '| label | loss |\n|---|---|\n| ssgd | 0.250 |\n'
  """
  frame = _frame(rows, columns).map(lambda cell: cell.replace('|', '\\|'))
  # Without alignment, because tabulate aligns by padding.
  head, _, body = _text(frame, _MARKDOWN, [None] * len(columns)).split('\n', 2)
  rule = ''.join('---:|' if c.is_number else '---|' for c in columns)
  return f'{head}\n|{rule}\n{body}'


def aligned(rows: Iterable[Row], columns: Sequence[Column]) -> str:
  r"""Return a table with aligned columns for a terminal.

  It wraps headings and long texts and omits empty columns, to stay narrow.

  Args:
    rows: rows of the table.
    columns: columns of the table.

  Example:
    >>> columns = [Column('label'), Column('step', is_number=True)]
    >>> aligned([{'label': 'ssgd', 'step': 2}], columns)
    'label      step\n-------  ------\nssgd          2\n'
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
  r"""Return all values of the rows as CSV, with a header of their names.

  Args:
    rows: rows of the table. A missing value is an empty cell; lists and objects
      are JSON.
    last: names of columns to put last, because their cells are long.

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
  """Group rows by some of their values, in the order of appearance.

  Args:
    rows: rows, one for each run.
    by: names of the values that are equal in a group.

  Returns:
    A list of (values of `by`, rows of the group as a data frame).
  """
  frame = pd.DataFrame(rows, dtype=object)
  return list(frame.groupby(list(by), sort=False, dropna=False))


def spread(values: Iterable[float], show: Callable[[float], str]) -> str:
  """Return the mean and the range as text; of one value, only the value.

  Args:
    values: values over the seeds.
    show: function that formats a value.

  Example:
    >>> spread([1.0, 2.0], '{:.1f}'.format)
    '1.5 (1.0 to 2.0)'
  """
  # NaN is not skipped, because a seed without a value makes the mean NaN.
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
