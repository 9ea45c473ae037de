"""The docstrings of the package, made readable for Sphinx.

They are plain text with the symbols of the papers, such as `|x|`, `W'` and
`x_i`, which reStructuredText would read as markup. Here these are escaped, and
an indented block, which in a docstring is the update rule as the paper writes
it, is shown as it is.
"""

from collections.abc import Iterator
import itertools
import re
from typing import Any

from sphinx.application import Sphinx

# Napoleon's sections; what is in them is indented and no block.
_SECTION = re.compile(
  r'(Args|Attributes|Returns|Yields|Raises|Example|Reference):\s*$'
)
_ITEM = re.compile(r'- |\d+\. ')
_CODE = re.compile(r'(``.+?``|`[^`]+`)')
_MARKUP = re.compile(r'([|*])')
# A name that ends with an underscore would be a link.
_LINK = re.compile(r'(?<=\w)_(?=\W|$)')


def readable(lines: list[str]) -> list[str]:
  """Return the lines of a docstring with its symbols escaped.

  Example:
    >>> readable(['For |x|:', '  x <- x*', 'and `a|b`.'])
    ['For \\\\|x\\\\|:', '', '::', '', '  x <- x*', '', 'and `a|b`.']
  """
  made: list[str] = []
  for indented, run in itertools.groupby(_filled(lines), _is_indented):
    part = list(run)
    if not indented:
      made += _with_lists(list(map(escaped, part)))
      continue
    head = next((line for line in reversed(made) if line), '')
    if _SECTION.match(head):
      made += _section(part)
    elif _ITEM.match(head):
      made += map(escaped, part)
    else:
      made += ['', '::', '', *part, '']
  return made


def _is_indented(line: str) -> bool:
  return line[:1] == ' '


def _filled(lines: list[str]) -> Iterator[str]:
  """The lines, of which blank ones inside an indented part are indented."""
  for i, line in enumerate(lines):
    after = next((x for x in lines[i:] if x.strip()), '')
    before = next((x for x in reversed(lines[:i]) if x.strip()), '')
    inside = _is_indented(before) and _is_indented(after)
    yield ' ' if inside and not line.strip() else line


def _with_lists(lines: list[str]) -> Iterator[str]:
  """The lines, with a blank one before a list, which Sphinx needs."""
  before = ''
  for line in lines:
    if _ITEM.match(line) and before.strip() and not _ITEM.match(before):
      yield ''
    yield (before := line)


def _section(lines: list[str]) -> Iterator[str]:
  """The lines of a section: examples as they are, prose escaped."""
  example = False
  for line in lines:
    starts = line.lstrip().startswith(('>>>', '...'))
    example = bool(line.strip()) and (starts or example)
    yield line if example else escaped(line)


def escaped(line: str) -> str:
  """Return a line of prose whose symbols are no markup."""
  parts = _CODE.split(line)
  parts[::2] = [
    _LINK.sub(r'\\_', _MARKUP.sub(r'\\\1', part)) for part in parts[::2]
  ]
  return ''.join(parts)


def process(
  app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
  del app, what, name, thing, options
  lines[:] = readable(lines)


def setup(app: Sphinx) -> dict[str, Any]:
  """Register before Napoleon, whose handlers have the priority 500."""
  app.connect('autodoc-process-docstring', process, priority=400)
  return {'version': '1', 'parallel_read_safe': True}
