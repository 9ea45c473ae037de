"""Write the tables of algorithms, of the headline and of claims in the README.

python experiments/tools/readme.py
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

import inspect
import re
from typing import get_args

from experiments.papers import results_page
from experiments.papers.headline import setting
from experiments.papers.headline import table as headline_table
from experiments.papers.rules import Verdict
from experiments.running.flags import algorithm_flags
from experiments.running.records import writing
from experiments.tools import tables
from experiments.tools.tables import Column

README = pathlib.Path(__file__).parents[2] / 'README.md'
PAGES = 'docs/algorithms/'
RESULTS = README.parent / 'experiments' / 'results' / 'reproduce'
FIGURE = (RESULTS / 't01_long-long.png').relative_to(README.parent).as_posix()
# The shortest and the longest intervals. All curves are in docs/headline.md.
CURVES = (setting.SSGD, 'I = 4', 'I = 32', setting.ONE_SHOT)
# Module of a family -> its title.
FAMILIES = {
  'averaging': 'Averages of all replicas',
  'hierarchical': 'Averages inside groups and between them',
  'decentralized': 'Gossip on a graph',
  'exact': 'Gossip and relays that are exact on unlike data',
  'relay': 'Gossip and relays that are exact on unlike data',
  'outer': 'Momentum of whole rounds',
  'diloco': 'Outer optimizers',
  'delayed': 'Outer optimizers that do not wait',
  'robust': 'Outer optimizers for unreliable replicas',
  'streaming': 'Outer optimizers that do not wait',
  'elastic': 'Elastic forces',
  'federated': 'Federated averaging',
  'compressed': 'Quantized and sparse messages',
  'sparse': 'Few entries, frequencies or directions',
  'dion': 'Few entries, frequencies or directions',
  'corrected': 'Corrections of the average or of the steps',
}


def with_tables(text: str) -> str:
  """Return the text with the tables between their marks written again.

  Args:
    text: of the README.
  """
  text = _between(text, 'algorithms', format_algorithms())
  text = _between(text, 'headline', format_headline())
  return _between(text, 'claims', format_claims())


def _between(text: str, mark: str, table: str) -> str:
  begin, end = (f'<!-- {mark}: {word} -->\n' for word in ('begin', 'end'))
  if begin not in text:
    return text
  before, _, rest = text.partition(begin)
  _, _, after = rest.partition(end)
  return before + begin + table + end + after


def format_algorithms() -> str:
  """Return a table with a row for each family of algorithms."""
  links: dict[str, list[str]] = {}
  for name in algorithm_flags.ALGORITHMS:
    links.setdefault(family(name), []).append(link(name, PAGES))
  rows = [
    {'family': title, 'algorithms': ', '.join(found)}
    for title, found in links.items()
  ]
  return tables.markdown(rows, [Column(name) for name in rows[0]])


def format_headline() -> str:
  """Return the headline figure, its table and source, and the gap in words."""
  kept = results_page.read(RESULTS)
  found = {one['name']: one for one in kept if one['scale'] == 'long'}
  curves, lengths = found['t01_long'], found['t01_length']
  return (
    f'![{curves["title"]}]({FIGURE})\n\n'
    f'{headline_table.of_curves(curves["data"], CURVES)}\n'
    f'{headline_table.source(curves)} '
    f'{headline_table.of_lengths_in_words(lengths["data"])}\n'
  )


def format_claims() -> str:
  """Return a table with the number of claims of each verdict."""
  outcomes = results_page.read(RESULTS)
  claims = [claim for one in outcomes for claim in one['claims']]

  def counted(found: list[str]) -> str:
    each = ', '.join(f'{found.count(v)} {v}' for v in get_args(Verdict))
    return f'{len(found)}: {each}'

  row = {
    'studies': len(outcomes),
    'claims of the papers': counted(
      [c.verdict for c in claims if c.is_of_papers and not c.is_recalled]
    ),
    'recalled, not verified': counted(
      [c.verdict for c in claims if c.is_recalled]
    ),
    'derived here, or our own': counted(
      [c.verdict for c in claims if not c.is_of_papers]
    ),
  }
  return tables.markdown([row], [Column(name) for name in row])


def names() -> list[str]:
  """Return all names of algorithms, second names after the first ones."""
  found: list[str] = []
  for name in algorithm_flags.ALGORITHMS:
    aliases = algorithm_flags.ALIASES
    found += [name, *(n for n, first in aliases.items() if first == name)]
  return found


def link(name: str, pages: str = '') -> str:
  """Return a link to the page of an algorithm.

  Args:
    name: of the algorithm.
    pages: path from the file with the link to the pages; '' from beside them.
  """
  return f'[`{name}`]({pages}{name}.md)'


def family(name: str) -> str:
  """Return the title of the family of an algorithm.

  Args:
    name: of the algorithm.

  Example:
    >>> family('slowmo')
    'Momentum of whole rounds'
  """
  made = algorithm_flags.ALGORITHMS[algorithm_flags.find(name)]
  return FAMILIES[made.__module__.rpartition('.')[2]]


def summary(name: str) -> str:
  """Return the sentence below the title of an algorithm's page.

  Example:
    >>> summary('muloco')
    'DiLoCo whose inner optimizer is Muon.'
  """
  text = (README.parent / PAGES / f'{name}.md').read_text()
  return text.split('\n\n')[1]


def paper(name: str) -> str:
  """Return the first reference of an algorithm, short, and linked to arXiv.

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
  writing.write_text(README, with_tables(README.read_text()))
