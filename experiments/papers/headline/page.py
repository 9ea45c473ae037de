"""docs/headline.md: the headline figure and its tables, from saved results."""

from collections.abc import Callable, Mapping, Sequence
import pathlib
import textwrap
from typing import Any

from experiments.papers.headline import table
from experiments.running.records import records, writing

PAGE = pathlib.Path(__file__).parents[3] / 'docs' / 'headline.md'
HEAD = """# The headline figure

By the figure of Yu, Yang, Zhu 2019 (arXiv 1807.06629), PR-SGD with a moderate
interval I trains as well as synchronous SGD (SSGD) against epochs, and faster
against time. The paper trains ResNet-20 for 300 epochs (recalled, not
verified). Here one study keeps the 300 epochs and shrinks the network. Another
one compares lengths of the run, which the paper does not. A third one keeps the
network and shortens the schedule.

`make reproduce SCALE=long DATA_DIR=data` runs them piece by piece. It writes
this page and the figures each time a curve is finished. Numbers over several
seeds are means, with their range in parentheses. {doc}`results` has the rules
and the verdicts.

The line below a table names the machine and the commit that judged the curves.
Each curve is a file in `experiments/results/reproduce/`, with the machine and
the commit that trained it, except curves that were trained before they were
kept. Another clone trains only the curves without a file.
"""
WIDTH = 80

# Study -> its table.
STUDIES: dict[str, Callable[[Mapping[str, Any]], str]] = {
  't01_long': table.of_curves,
  't01_length': table.of_lengths,
  't01_long_resnet20': table.of_curves,
}


def write(
  outcomes: Sequence[records.Record], page: pathlib.Path = PAGE
) -> pathlib.Path:
  """Write the page from the outcomes of `results_page.read`."""
  writing.write_text(page, format_page(outcomes))
  return page


def format_page(outcomes: Sequence[records.Record]) -> str:
  """Return Markdown with a section for each study of the headline figure."""
  found = {one['name']: one for one in outcomes if one['scale'] == 'long'}
  return HEAD + ''.join(
    _section(name, found.get(name), of_data)
    for name, of_data in STUDIES.items()
  )


def _section(
  name: str,
  outcome: records.Record | None,
  of_data: Callable[[Mapping[str, Any]], str],
) -> str:
  command = f'`python -m experiments.reproduce --targets={name} --scale=long`'
  if outcome is None:
    return f'\n## {name}\n\nNot run yet: {command}\n'
  title, data = outcome['title'], outcome['data']
  figure = f'../experiments/results/reproduce/{name}-long.png'
  setting = _filled(f'{_setting(outcome)}{command}: {table.source(outcome)}')
  return f'\n## {title}\n\n![{title}]({figure})\n\n{of_data(data)}\n{setting}\n'


def _setting(outcome: records.Record) -> str:
  settings = [claim.setting for claim in outcome['claims'] if claim.setting]
  return f'{settings[0]} ' if settings else ''


def _filled(text: str) -> str:
  return textwrap.fill(
    text, WIDTH, break_long_words=False, break_on_hyphens=False
  )
