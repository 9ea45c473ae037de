"""experiments/RESULTS.md, from the files of the reproductions alone."""

from collections.abc import Mapping
import pathlib

from experiments.papers.target import Target
from experiments.running.records import json_files, records, writing
from experiments.tools import tables
from experiments.tools.tables import Column

PAGE = pathlib.Path(__file__).parents[1] / 'RESULTS.md'
HEAD = """# Results

What the papers say, and what was measured here. Every number comes from a file
in `results/reproduce/`, which the command of its section makes; a claim that
did not reproduce says so, with what was tried. `yes`, `partly` and `no` are
decided by the numbers, by the rule that the last column states.

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
    'claims': json_files.list_of(
      json_files.object_of(
        {
          **dict.fromkeys(('says', 'measured', 'tried'), json_files.string),
          'reproduced': json_files.one_of('yes', 'partly', 'no'),
        }
      )
    ),
  }
)

SUMMARY = (
  Column('target'),
  Column('title'),
  Column('scale'),
  Column('reproduced'),
  Column('seconds', show='{:.0f}'.format),
)
NOT_RUN = (Column('target'), Column('title'), Column('command'))
CLAIMS = (
  Column('says', 'the paper'),
  Column('measured'),
  Column('reproduced'),
  Column('tried', 'rule, or what was tried'),
)

# What the papers have, and what was not attempted for want of data or weights.
OUT_OF_REACH = """
Not attempted, for want of the data or the weights: the papers' runs on ImageNet
(among them Zhou and Cong 2019, Zhang et al. 2021) and on speech (SWB300 and
SWB2000), and the rows of Zhu et al. 2023 from pretrained weights; for want of
an algorithm, SlowMo around SGP.
"""


def write(
  results: pathlib.Path,
  targets: Mapping[str, Target],
  page: pathlib.Path = PAGE,
) -> pathlib.Path:
  """Writes the page from all outcomes in a directory; returns its path."""
  figures = results.relative_to(page.parent)
  text = format_page(read(results), figures, targets)
  writing.write_text(page, text)
  return page


def read(results: pathlib.Path) -> list[records.Record]:
  """All outcomes, in the order of their names.

  Raises:
    DamagedFile: if a file has another form.
  """
  return [
    json_files.read(path, _FORM) for path in sorted(results.glob('*.json'))
  ]


def format_page(
  outcomes: list[records.Record],
  figures: pathlib.Path,
  targets: Mapping[str, Target],
) -> str:
  """Markdown: a summary, what was not run, and a section for each outcome."""
  rows = [
    {
      **outcome,
      'target': f'[{outcome["name"]}](#{_anchor(outcome)})',
      'reproduced': _verdicts(outcome),
    }
    for outcome in outcomes
  ]
  summary = tables.markdown(rows, SUMMARY)
  sections = [_section(o, figures) for o in outcomes]
  return ''.join((HEAD, summary, _not_run(outcomes, targets), *sections))


def _not_run(
  outcomes: list[records.Record], targets: Mapping[str, Target]
) -> str:
  """The settings without an outcome, and what no target has."""
  done = {(o['name'], o['scale']) for o in outcomes}
  rows = [
    {'target': name, 'title': target.title, 'command': _command(name, scale)}
    for name, target in targets.items()
    for scale in target.scales
    if (name, scale) not in done
  ]
  head = (
    '\nWritten, and not run: no accelerator was at hand. The tests start each '
    'in small,\nand put together every run of it.\n\n'
  )
  table = head + tables.markdown(rows, NOT_RUN) if rows else ''
  return table + OUT_OF_REACH


def _command(name: str, scale: str) -> str:
  return f'`python -m experiments.reproduce --targets={name} --scale={scale}`'


def _verdicts(outcome: records.Record) -> str:
  found = [claim['reproduced'] for claim in outcome['claims']]
  counts = [(v, found.count(v)) for v in ('yes', 'partly', 'no')]
  return ', '.join(f'{n} {v}' for v, n in counts if n)


def _title(outcome: records.Record) -> str:
  return f'{outcome["name"]} {outcome["scale"]}'


def _anchor(outcome: records.Record) -> str:
  return _title(outcome).replace(' ', '-')


def _section(outcome: records.Record, figures: pathlib.Path) -> str:
  machine, seeds = outcome['machine'], outcome['seeds']
  figure = figures / f'{outcome["name"]}-{outcome["scale"]}.png'
  return (
    f'\n## {_title(outcome)}\n\n{outcome["title"]}. {outcome["paper"]}.\n\n'
    f'![{outcome["title"]}]({figure})\n\n'
    f'{tables.markdown(outcome["claims"], CLAIMS)}\n'
    f'{_command(outcome["name"], outcome["scale"])}: '
    f'{outcome["seconds"]:.0f} s, '
    f'{machine["cpus"]} {machine["device"]} cores, JAX {machine["jax"]}, '
    f'seeds {", ".join(map(str, seeds))}, commit {outcome["commit"]}.\n'
  )
