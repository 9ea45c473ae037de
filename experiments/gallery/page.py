"""docs/gallery.md, from the saved files of the entries only."""

from collections.abc import Mapping
import pathlib
import textwrap

from experiments.gallery.entry import Entry
from experiments.papers import results_page
from experiments.running.records import records, writing

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'gallery.md'
HEAD = """# Gallery

Questions that the papers leave open, each in one figure and three sentences.
`make gallery DATA_DIR=data AGAIN=1` runs the experiments again, and writes the
figures and this page.
Numbers in parentheses are 95% intervals over the seeds, each for a single
comparison. Bands in the figures reach from the lowest to the highest seed.
"""
WIDTH = 80


def write(
  results: pathlib.Path,
  entries: Mapping[str, Entry],
  page: pathlib.Path = PAGE,
) -> pathlib.Path:
  """Write the page from all saved entries; return its path.

  Raises:
    DamagedFile: if a saved file has another form.
  """
  text = format_page(results_page.read(results), entries)
  writing.write_text(page, text)
  return page


def format_page(
  outcomes: list[records.Record], entries: Mapping[str, Entry]
) -> str:
  """Return Markdown with a section for each saved entry."""
  known = [outcome for outcome in outcomes if outcome['name'] in entries]
  return HEAD + ''.join(
    _section(outcome, entries[outcome['name']]) for outcome in known
  )


def _section(outcome: records.Record, entry: Entry) -> str:
  name, data, machine = outcome['name'], outcome['data'], outcome['machine']
  title = entry.target.title
  seeds = ', '.join(map(str, outcome['seeds']))
  paragraphs = (
    ' '.join(entry.sentences(data)),
    f'{entry.setting(data)} Seeds {seeds}.',
    f'`python -m experiments.make_gallery --entries={name} --again`: '
    f'{results_page.time_of(outcome)}, {machine["cpus"]} {machine["device"]} '
    f'cores, JAX {machine["jax"]}, commit {outcome["commit"]}.',
  )
  body = '\n\n'.join(_filled(text) for text in paragraphs)
  figure = f'../experiments/results/gallery/{name}.png'
  return f'\n## {title}\n\n![{title}]({figure})\n\n{body}\n'


def _filled(text: str) -> str:
  return textwrap.fill(
    text, WIDTH, break_long_words=False, break_on_hyphens=False
  )
