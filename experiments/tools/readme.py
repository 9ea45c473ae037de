"""Writes the tables of algorithms in the README from the code.

python experiments/tools/readme.py
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
BEGIN = '<!-- algorithms: begin -->\n'
END = '<!-- algorithms: end -->\n'


def with_table(text: str) -> str:
  """The text with the tables between their two marks made anew."""
  before, _, rest = text.partition(BEGIN)
  _, _, after = rest.partition(END)
  return before + BEGIN + format_table() + END + after


def format_table() -> str:
  """Markdown: a table for every family, from signatures and docstrings."""
  columns = [Column(n) for n in ('algorithm', 'what it does', 'reference')]
  families: dict[str, list[dict[str, str]]] = {}
  for name, algorithm in algorithm_flags.ALGORITHMS.items():
    module = sys.modules[algorithm.__module__]
    title = (inspect.getdoc(module) or '').split('\n')[0]
    families.setdefault(title, []).append(_row(name))
  return '\n'.join(
    f'{title}\n\n{tables.markdown(rows, columns)}'
    for title, rows in families.items()
  )


def _row(name: str) -> dict[str, str]:
  algorithm = algorithm_flags.ALGORITHMS[name]
  doc = inspect.getdoc(algorithm) or ''
  summary = doc.split('\n')[0].rstrip('.')
  reference = ' '.join(doc.partition('Reference:\n')[2].split())
  papers = re.split(r'(?<!et al)\. ', reference)[0].rstrip('.')
  keywords = [
    f', {parameter.name}='
    for parameter in inspect.signature(algorithm).parameters.values()
    if parameter.kind == parameter.KEYWORD_ONLY and parameter.name != 'average'
  ]
  first = next(iter(inspect.signature(algorithm).parameters))
  return {
    'algorithm': f'`{name}({first}{"".join(keywords)})`',
    'what it does': summary,
    'reference': papers,
  }


if __name__ == '__main__':
  writing.write_text(README, with_table(README.read_text()))
