"""The page of a report as values, and the template that makes HTML of them.

A page has sections, a section has figures, facts, claims and tables. All their
text is escaped by the template.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import hashlib
import math
import pathlib
from typing import Any, NamedTuple

import jinja2

from experiments.running.records import json_files
from experiments.tools.tables import Column, Row

# Tables with more rows have a box to filter them.
_FEW_ROWS = 6
# Tables with more columns are printed in landscape.
_FEW_COLUMNS = 8
# Letters of a cell that needs a wide column.
_LONG = 60
_PNG = b'\x89PNG\r\n\x1a\n'
_TEMPLATES = pathlib.Path(__file__).with_name('templates')


class Chip(NamedTuple):
  """A colored word.

  Attributes:
    kind: 'yes', 'partly' or 'no', which have a color and a sign each.
    text: the word.
    key: what a column of them is sorted by; the text by default.
  """

  kind: str
  text: str
  key: str = ''


class Link(NamedTuple):
  """A link to a section of the page."""

  text: str
  anchor: str


class Spread(NamedTuple):
  """A mean over seeds with its range."""

  mean: float
  low: float
  high: float


class Ranged(NamedTuple):
  """A text with the range of its value."""

  text: str
  range: str


class Titled(NamedTuple):
  """A text with another one that shows when it is pointed at."""

  text: str
  title: str


class Best(NamedTuple):
  """A value that is the best one of its column."""

  value: Any


class Cell(NamedTuple):
  """A cell as the template shows it.

  Attributes:
    text: the value, formatted.
    key: what the column is sorted by; empty cells come last.
    range: the range of the value over the seeds.
    kind: of a chip.
    anchor: of a link.
    title: shows when the cell is pointed at.
    is_best: whether it is the best of its column.
  """

  text: str
  key: str
  range: str = ''
  kind: str = ''
  anchor: str = ''
  title: str = ''
  is_best: bool = False

  @property
  def is_long(self) -> bool:
    """Whether the text needs a wide column."""
    return len(self.text) > _LONG


class Table(NamedTuple):
  """A table whose rows can be sorted, and filtered if they are many.

  Attributes:
    title: the heading.
    note: what one must know to read it.
    columns: those that are shown.
    rows: a cell for each column.
    is_plain: whether it is too small for sorting and filtering.
  """

  title: str
  note: str
  columns: Sequence[Column]
  rows: Sequence[Sequence[Cell]]
  is_plain: bool = False

  @property
  def has_filter(self) -> bool:
    """Whether the rows are too many to see at once."""
    return len(self.rows) > _FEW_ROWS and not self.is_plain

  @property
  def is_wide(self) -> bool:
    """Whether it needs the long side of a sheet of paper."""
    return len(self.columns) > _FEW_COLUMNS


class Figure(NamedTuple):
  """A PNG in base64, with its caption."""

  png: str
  caption: str


class Claim(NamedTuple):
  """A claim of a paper, and what was measured of it.

  Attributes:
    text: what the paper says.
    verdict: whether it was reproduced.
    tables: small ones of the numbers.
    remarks: (name, text), such as the rule that decides.
  """

  text: str
  verdict: Chip
  tables: Sequence[Table] = ()
  remarks: Sequence[tuple[str, str]] = ()


class Section(NamedTuple):
  """A part of the page that the contents list.

  Attributes:
    anchor: the name that links have.
    title: the heading.
    subtitle: such as the paper.
    figures: what is shown first.
    facts: (name, value) of what all numbers have in common.
    claims: of a reproduction.
    tables: of numbers.
  """

  anchor: str
  title: str
  subtitle: str = ''
  figures: Sequence[Figure] = ()
  facts: Sequence[tuple[str, str]] = ()
  claims: Sequence[Claim] = ()
  tables: Sequence[Table] = ()


class Page(NamedTuple):
  """A whole page.

  Attributes:
    title: the heading.
    facts: (name, value) of where and when all of it was measured.
    sections: the parts of the page.
    tallies: (chip, number) of the verdicts.
    contents: a table with a link to each section, by default a list of them.
  """

  title: str
  facts: Sequence[tuple[str, str]]
  sections: Sequence[Section]
  tallies: Sequence[tuple[Chip, int]] = ()
  contents: Table | None = None


def render(page: Page) -> str:
  """Return the HTML of a page."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['sha256'] = _sha256
  return environment.get_template('report.html.j2').render(page=page)


def _sha256(text: str) -> str:
  """Return the digest by which a content security policy admits a text."""
  return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def image(path: pathlib.Path, caption: str) -> Figure:
  """Return the figure in a PNG file.

  Raises:
    DamagedFile: if it is no PNG.
  """
  png = json_files.read_bytes(path)
  if png is None or not png.startswith(_PNG):
    raise json_files.damaged(path, 'it is no PNG')
  return Figure(base64.b64encode(png).decode(), caption)


def table(
  rows: Iterable[Row],
  columns: Sequence[Column],
  *,
  title: str = '',
  note: str = '',
) -> Table:
  """Return a table; columns that no row fills are left out."""
  listed = list(rows)
  filled = [c for c in columns if any(_has(row, c.name) for row in listed)]
  cells = [[_cell(row.get(c.name), c) for c in filled] for row in listed]
  return Table(title, note, filled, cells)


def _has(row: Row, name: str) -> bool:
  return row.get(name) not in (None, '')


def split_constant(
  rows: Sequence[Row], columns: Sequence[Column]
) -> tuple[list[Column], list[tuple[str, str]]]:
  """Part the columns that tell rows apart from those that do not.

  Args:
    rows: of a table.
    columns: of a table; the first one is never a fact.

  Returns:
    The columns of different values, and (title, text) of the others. Empty
    cells do not count, because a run that diverged has few values.
  """
  different, facts = list(columns[:1]), []
  for column in columns[1:]:
    filled = [row[column.name] for row in rows if _has(row, column.name)]
    cells = {_cell(value, column) for value in filled}
    if len(cells) == 1 and len(filled) > 1 and not (one := cells.pop()).kind:
      facts.append((column.title or column.name, one.text))
    elif filled:
      different.append(column)
  return different, facts


def _cell(value: Any, column: Column) -> Cell:
  match value:
    case None:
      return Cell('', '')
    case Best(inner):
      return _cell(inner, column)._replace(is_best=True)
    case Chip(kind, text, key):
      return Cell(text, key or text, kind=kind)
    case Link(text, anchor):
      return Cell(text, text, anchor=anchor)
    case Ranged(text, ends):
      return Cell(text, text, ends)
    case Titled(text, title):
      return Cell(text, text, title=title)
    case Spread(mean, low, high):
      ends = '' if low == high else f'{column.show(low)} to {column.show(high)}'
      return Cell(column.show(mean), _key(mean), ends)
    case str():
      return Cell(value, value)
  return Cell(column.show(value), _key(value))


def _key(value: Any) -> str:
  """What a cell is sorted by: exact, and empty for what is no number."""
  if isinstance(value, float) and math.isnan(value):
    return ''
  return str(value)


def joined(values: Iterable[Any]) -> str:
  """Return the different values in their order, such as 'cpu, gpu'."""
  return ', '.join(dict.fromkeys(str(value) for value in values))


def as_facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Return the (name, text) of those values that say something."""
  texts = ((name, _fact(value)) for name, value in found.items())
  return [(name, text) for name, text in texts if text]


def _fact(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{k}: {_fact(v)}' for k, v in value.items())
  if isinstance(value, list):
    return ', '.join(map(_fact, value))
  return '' if value is None else str(value)
