"""The part of a report on the reproductions: an overview, and their claims."""

from collections.abc import Mapping, Sequence
import pathlib
import re
from typing import Any, NamedTuple

from experiments.papers import claims
from experiments.papers.quantities import Table as Measured
from experiments.running.records import json_files, units
from experiments.tools import report_page
from experiments.tools.report_page import Chip, Link, Ranged, Section, Table
from experiments.tools.tables import Column

# What a claim may be found to be -> how it is shown.
VERDICTS = {
  'yes': Chip('yes', 'reproduced'),
  'partly': Chip('partly', 'partly'),
  'no': Chip('no', 'not reproduced'),
}
# Of a reproduction: fields that have a place of their own, and its curves.
_PLACED = (
  'name', 'title', 'paper', 'scale', 'claims', 'data', 'seconds', 'machine',
  'commit', 'seeds',
)  # fmt: skip

_FORM = json_files.object_of(
  {
    'name': json_files.text,
    'title': json_files.text,
    'claims': json_files.list_of(claims.check),
  },
  {
    **dict.fromkeys(('paper', 'scale', 'commit'), json_files.string),
    'seconds': json_files.number,
    'seeds': json_files.list_of(json_files.integer),
    'machine': json_files.object_of({}),
  },
)
# Heads of columns that have words in the tables of measured numbers.
_WORDS = ('case', 'quantity', 'unit')


class Reproduction(NamedTuple):
  """An outcome as its file has it.

  Attributes:
    path: of the file.
    found: what is in it, besides the claims.
    claims: what it says, and how that was judged.
  """

  path: pathlib.Path
  found: Mapping[str, Any]
  claims: Sequence[claims.Claim]

  @property
  def chips(self) -> list[Chip]:
    """The verdicts of its claims."""
    return [VERDICTS[claim.verdict] for claim in self.claims]


def read(directory: pathlib.Path) -> list[Reproduction]:
  """Return all reproductions in a directory.

  Raises:
    ValueError: if there is none, or a file has another form.
  """
  found = []
  for path in sorted(directory.glob('*.json')):
    one = json_files.read(path, _FORM)
    judged = [claims.from_json(claim) for claim in one['claims']]
    found.append(Reproduction(path, one, judged))
  if not found:
    raise ValueError(
      f'there is no reproduction in {directory}; run some, or pass another '
      '--reproductions_dir'
    )
  return found


def machines(found: Sequence[Reproduction]) -> dict[str, str]:
  """Return what they were measured with."""
  machine = [one.found.get('machine', {}) for one in found]
  return {
    'machine': report_page.joined(_machine(m) for m in machine if m),
    'JAX': report_page.joined(m['jax'] for m in machine if 'jax' in m),
    'commit': report_page.joined(
      one.found['commit'] for one in found if 'commit' in one.found
    ),
  }


def _machine(machine: Mapping[str, Any]) -> str:
  cpus, device = machine.get('cpus'), machine.get('device')
  cores = f'{cpus} {device} cores' if cpus else device
  parts = (cores, machine.get('processor'))
  return ', '.join(str(part) for part in parts if part)


def contents(found: Sequence[Reproduction]) -> Table:
  """Return the table of all reproductions, with a link to each."""
  rows = [
    {
      'title': Link(one.found['title'], one.path.stem),
      **{
        verdict: _tally(one.chips.count(chip), chip)
        for verdict, chip in VERDICTS.items()
      },
      'scale': one.found.get('scale'),
      'seconds': one.found.get('seconds'),
    }
    for one in found
  ]
  columns = [
    Column('title', 'reproduction'),
    *(Column(verdict, chip.text) for verdict, chip in VERDICTS.items()),
    Column('scale'),
    Column('seconds', 'time', units.duration, is_number=True),
  ]
  return report_page.table(rows, columns)


def _tally(count: int, chip: Chip) -> Chip | None:
  if not count:
    return None
  return chip._replace(text=f'{count} {chip.text}', key=str(count))


def section(one: Reproduction) -> Section:
  """Return the figure, the claims, and whatever else is known of one."""
  found = one.found
  figures = []
  picture = one.path.with_suffix('.png')
  if picture.exists():
    figures.append(report_page.image(picture, _caption(found)))
  rest = {name: v for name, v in found.items() if name not in _PLACED}
  listed = {name: v for name, v in rest.items() if _is_table(v)}
  facts = {
    'command': _command(found),
    'time': _duration(found.get('seconds')),
    'machine': _machine(found.get('machine', {})),
    'commit': found.get('commit'),
    **{name: v for name, v in rest.items() if name not in listed},
  }
  return Section(
    anchor=one.path.stem,
    title=found['title'],
    subtitle=found.get('paper', ''),
    figures=figures,
    claims=[_claim(claim) for claim in one.claims],
    tables=[_listed(name, rows) for name, rows in listed.items()],
    facts=report_page.as_facts(facts),
  )


def _caption(found: Mapping[str, Any]) -> str:
  seeds = found.get('seeds', [])
  listed = ', '.join(map(str, seeds))
  measured = f', seed{"s" * (len(seeds) > 1)} {listed}' if seeds else ''
  scale = f' Scale: {found["scale"]}{measured}.' if 'scale' in found else ''
  return f'{found["title"]}.{scale}'


def _command(found: Mapping[str, Any]) -> str:
  scale = f' --scale={found["scale"]}' if 'scale' in found else ''
  return f'python -m experiments.reproduce --targets={found["name"]}{scale}'


def _duration(seconds: float | None) -> str | None:
  return None if seconds is None else units.duration(seconds)


def _claim(claim: claims.Claim) -> report_page.Claim:
  remarks = {
    'Rule': claim.sentence,
    'Source': claim.source,
    'Setting': claim.setting,
    'Note': claim.note,
  }
  return report_page.Claim(
    text=claim.text,
    verdict=VERDICTS[claim.verdict],
    tables=[_measured(one) for one in claim.tables()],
    remarks=report_page.as_facts(remarks),
  )


def _measured(one: Measured) -> Table:
  """Return the table of some quantities, with their ranges below the means."""
  columns = [Column(name, is_number=name not in _WORDS) for name in one.head]
  rows = [
    dict(zip(one.head, map(_with_range, row), strict=True)) for row in one.rows
  ]
  return report_page.table(rows, columns)._replace(is_plain=True)


def _with_range(text: str) -> str | Ranged:
  found = re.fullmatch(r'(\S+) \((.+ to .+)\)', text)
  return Ranged(*found.groups()) if found else text


def _is_table(value: Any) -> bool:
  """Whether it is a list of flat rows."""
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(row, dict) for row in value)
  )


def _listed(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
  names = dict.fromkeys(key for row in rows for key in row)
  columns = [Column(key, show=_text) for key in names]
  return report_page.table(rows, columns, title=name)


def _text(value: Any) -> str:
  return units.number(value) if isinstance(value, float) else str(value)
