"""Writes the table of algorithms in the README.

python experiments/tools/readme.py

A row has the sentence below the title of the algorithm's page, and the first
reference of its docstring.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

import inspect
import re

from experiments.running.flags import algorithm_flags
from experiments.running.records import writing
from experiments.tools import tables
from experiments.tools.tables import Column

README = pathlib.Path(__file__).parents[2] / 'README.md'
PAGES = 'docs/algorithms/'
BEGIN = '<!-- algorithms: begin -->\n'
END = '<!-- algorithms: end -->\n'


def with_table(text: str) -> str:
  """Returns the text with the table between its two marks written again."""
  before, _, rest = text.partition(BEGIN)
  _, _, after = rest.partition(END)
  return before + BEGIN + format_table() + END + after


def format_table() -> str:
  """Returns Markdown: a row for every algorithm, family by family."""
  rows = [
    {
      'algorithm': link(name, PAGES),
      'what it does': summary(name),
      'paper': paper(name),
    }
    for name in algorithm_flags.ALGORITHMS
  ]
  return tables.markdown(rows, [Column(name) for name in rows[0]])


def names() -> list[str]:
  """Returns all names of algorithms, second names after the first ones."""
  found: list[str] = []
  for name in algorithm_flags.ALGORITHMS:
    aliases = algorithm_flags.ALIASES
    found += [name, *(n for n, first in aliases.items() if first == name)]
  return found


def link(name: str, pages: str = '') -> str:
  """Returns a link to the page of an algorithm.

  Args:
    name: of the algorithm.
    pages: path from the file with the link to the pages; '' from beside them.
  """
  return f'[`{name}`]({pages}{name}.md)'


def summary(name: str) -> str:
  """Returns the sentence below the title of an algorithm's page.

  Example:
    >>> summary('muloco')
    'DiLoCo whose inner optimizer is Muon.'
  """
  text = (README.parent / PAGES / f'{name}.md').read_text()
  return text.split('\n\n')[1]


def paper(name: str) -> str:
  """Returns the first reference of an algorithm, short, and linked to arXiv.

  Example:
    >>> paper('qsgd')
    '[Alistarh et al. 2017](https://arxiv.org/abs/1610.02132)'
  """
  reference = ' '.join(_docstring(name).partition('Reference:\n')[2].split())
  found = re.match(r'(.+?) (\d{4})\b', reference)
  if found is None:
    return ''
  authors, year = found.groups()
  listed = authors.split(', ')
  if len(listed) > 2:
    authors = f'{listed[0]} et al.'
  short = f'{authors.replace(", ", " and ")} {year}'
  number = re.search(r'arXiv (\d{4}\.\d{4,5})', reference)
  if number is None:
    return short
  return f'[{short}](https://arxiv.org/abs/{number.group(1)})'


def _docstring(name: str) -> str:
  made = algorithm_flags.ALGORITHMS[algorithm_flags.find(name)]
  return inspect.getdoc(made) or ''


if __name__ == '__main__':
  writing.write_text(README, with_table(README.read_text()))
