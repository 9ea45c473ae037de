"""experiments/RESULTS.md, from the files of the reproductions only."""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import get_args

from experiments.papers import claims, resampling, sources_page
from experiments.papers.claims import Claim
from experiments.papers.headline import page as headline_page
from experiments.papers.rules import Verdict
from experiments.papers.target import Target
from experiments.running.records import json_files, records, writing
from experiments.tools import tables
from experiments.tools.tables import Column

PAGE = pathlib.Path(__file__).parents[1] / 'RESULTS.md'
HEAD = """# Results

The claims of the papers, and what was measured here. Every number comes from a
file in `results/reproduce/`, which the command of its section makes. Each claim
has a rule, which decides between `yes`, `partly` and `no` by the numbers in its
tables. Numbers over several seeds are means, with their range in parentheses.
Claims that the papers make are counted apart from those that were derived here
and from checks of our own. A percentage after a verdict is the fraction of 200
resamplings of the seeds with the same verdict, where it is below 95%: other
seeds may change such a verdict. If one of the numbers has fewer than three
seeds, they cannot be resampled, which is printed after the verdict. A claim has
no seeds if its numbers are exact, or means or extremes over the seeds.

"""


_FORM = json_files.object_of(
  {
    **dict.fromkeys(
      ('name', 'title', 'paper', 'scale', 'commit'), json_files.text
    ),
    'seconds': json_files.number,
    'machine': json_files.object_of(
      {
        'cpus': json_files.optional(json_files.count),
        'device': json_files.text,
        'jax': json_files.text,
      }
    ),
    'seeds': json_files.list_of(json_files.integer),
    'claims': json_files.list_of(claims.check),
  }
)


# Results of the papers that were not attempted.
OUT_OF_REACH = """
Not attempted, because the data or the weights are missing: the papers' runs on
ImageNet (among them Zhou and Cong 2019, Zhang et al. 2021) and on speech
(SWB300 and SWB2000), and the rows of Zhu et al. 2023 from pretrained weights.
"""


def write(
  results: pathlib.Path,
  targets: Mapping[str, Target],
  page: pathlib.Path = PAGE,
) -> pathlib.Path:
  """Write the page from all outcomes in a directory; return its path."""
  figures = results.relative_to(page.parent)
  outcomes = read(results)
  text = format_page(outcomes, figures, targets)
  writing.write_text(page, text)
  # An installed copy has no documentation.
  if page == PAGE and sources_page.PAGE.parent.is_dir():
    sources_page.write(outcomes)
    headline_page.write(outcomes)
  return page


def read(results: pathlib.Path) -> list[records.Record]:
  """Read all outcomes in the order of their names.

  Each of `claims` is a `Claim`, whose verdict is evaluated again.

  Raises:
    DamagedFile: if a file has another form.
  """
  found = [
    json_files.read(path, _FORM) for path in sorted(results.glob('*.json'))
  ]
  return [
    {**one, 'claims': [claims.from_json(c) for c in one['claims']]}
    for one in found
  ]


def format_page(
  outcomes: list[records.Record],
  figures: pathlib.Path,
  targets: Mapping[str, Target],
) -> str:
  """Return Markdown: a summary, what was not run, a section per outcome."""
  rows = [
    (
      f'[{o["name"]}](#{_anchor(o)})',
      o['title'],
      o['scale'],
      _verdicts([c for c in o['claims'] if c.is_of_papers]),
      _verdicts([c for c in o['claims'] if not c.is_of_papers]),
      f'{o["seconds"]:.0f}',
    )
    for o in outcomes
  ]
  head = (
    'target', '', 'scale', "the papers' claims", 'derived or our own', 'seconds'
  )  # fmt: skip
  sections = [_section(o, figures) for o in outcomes]
  return ''.join(
    (HEAD, _table(head, rows), _not_run(outcomes, targets), *sections)
  )


def _not_run(
  outcomes: list[records.Record], targets: Mapping[str, Target]
) -> str:
  """Return the settings without an outcome, and what no target has."""
  done = {(o['name'], o['scale']) for o in outcomes}
  rows = [
    (
      name,
      target.title,
      f'`python -m experiments.reproduce --targets={name} --scale={scale}`',
    )
    for name, target in targets.items()
    for scale in target.scales
    if (name, scale) not in done
  ]
  text = (
    '\nWritten but not run: full settings need an accelerator, and long ones '
    'take hours\non two cores. The tests start each of them at a small size.'
    '\n\n'
  )
  table = _table(('target', '', 'command'), rows)
  return (text + table if rows else '') + OUT_OF_REACH


def _verdicts(judged: Sequence[Claim]) -> str:
  found = [claim.verdict for claim in judged]
  counts = [(v, found.count(v)) for v in get_args(Verdict)]
  return ', '.join(f'{n} {v}' for v, n in counts if n)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  columns = [Column(str(i), title or ' ') for i, title in enumerate(head)]
  named = ({str(i): cell for i, cell in enumerate(row)} for row in rows)
  return tables.markdown(named, columns)


def _title(outcome: records.Record) -> str:
  return f'{outcome["name"]} {outcome["scale"]}'


def _anchor(outcome: records.Record) -> str:
  return _title(outcome).replace(' ', '-')


def _section(outcome: records.Record, figures: pathlib.Path) -> str:
  machine, seeds = outcome['machine'], outcome['seeds']
  summary = [
    (
      str(i),
      claim.text + claim.caveat,
      '' if claim.is_of_papers else 'yes',
      claim.outcome,
    )
    for i, claim in enumerate(outcome['claims'], 1)
  ]
  figure = figures / f'{outcome["name"]}-{outcome["scale"]}.png'
  judged = ''.join(
    _claim(i, claim) for i, claim in enumerate(outcome['claims'], 1)
  )
  return (
    f'\n## {_title(outcome)}\n\n{outcome["title"]}. {outcome["paper"]}.\n\n'
    f'![{outcome["title"]}]({figure})\n\n'
    f'{_table(("", "claim", "derived or our own", "reproduced"), summary)}\n'
    f'`python -m experiments.reproduce --targets={outcome["name"]} '
    f'--scale={outcome["scale"]}`: {time_of(outcome)}, '
    f'{machine["cpus"]} {machine["device"]} cores, JAX {machine["jax"]}, '
    f'seeds {", ".join(map(str, seeds))} at most, commit '
    f'{outcome["commit"]}.\n{judged}'
  )


def time_of(outcome: records.Record) -> str:
  """Return the wall time of a run, and its CPU time if it is known."""
  taken = f'{outcome["seconds"]:.0f} s'
  # Results of earlier versions do not have it.
  if 'cpu_seconds' in outcome:
    taken += f' ({outcome["cpu_seconds"]:.0f} s of CPU time)'
  return taken


def _claim(index: int, claim: Claim) -> str:
  """Return a claim with its rule and its numbers."""
  parts = [
    f'**{index}. {claim.outcome}**: {_plain(claim.text)} '
    f'*({_plain(claim.source)})*',
    f'Rule: {_plain(claim.sentence)}.{_seeds(claim)}',
    *(_table(*table).rstrip() for table in claim.tables()),
    *(_plain(text) for text in (claim.setting, claim.note) if text),
  ]
  return '\n' + '\n\n'.join(parts) + '\n'


def _seeds(claim: Claim) -> str:
  """Return the number of seeds, and the verdicts of other seeds."""
  if claim.num_seeds < 2:
    return ''
  shares = claim.resampled()
  told = f' {claim.num_seeds} seeds'
  if shares and shares.get(claim.verdict, 0.0) < resampling.SURE:
    whole = resampling.percentages(shares)
    listed = ', '.join(f'{v} {share}%' for v, share in whole.items())
    told += f'; the verdict depends on them, resampled: {listed}'
  return told + '.'


def _plain(text: str) -> str:
  """Escape text that Markdown would read as emphasis or as a link."""
  for mark in '*_[<':
    text = text.replace(mark, f'\\{mark}')
  return text
