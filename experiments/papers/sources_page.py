"""docs/claims.md: every claim of the source documents, and its verdict."""

from collections.abc import Sequence
import pathlib

from experiments.papers.claims import Claim
from experiments.papers.sources import DOCUMENTS, Document, Missing, Paper
from experiments.running.records import records, writing
from experiments.tools import tables
from experiments.tools.tables import Column

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'claims.md'
HEAD = """# Claims of the sources

Each claim of the documents that this project set out to reproduce, where it was
reproduced, and the verdict. A percentage is the fraction of resamplings of the
seeds with this verdict, where it is below 95%. Fewer than three seeds are not
resampled, and exact numbers have none. Claims that were derived here,
and checks of our own, are not listed; {doc}`results` has all claims, with their
rules and numbers. A claim that is marked as recalled was written down from
memory, so that the paper may state it otherwise.
"""
COLUMNS = [
  Column(name) for name in ('paper', 'claim', 'study', 'verdict, or why not')
]


def write(
  outcomes: Sequence[records.Record], page: pathlib.Path = PAGE
) -> pathlib.Path:
  """Write the page from the outcomes of `results_page.read`."""
  writing.write_text(page, format_page(outcomes))
  return page


def format_page(outcomes: Sequence[records.Record]) -> str:
  """Return Markdown: a table for each document."""
  return HEAD + ''.join(_section(one, outcomes) for one in DOCUMENTS)


def rows_of(
  document: Document, outcomes: Sequence[records.Record]
) -> list[dict[str, str]]:
  """Return a row for each claim of a document, then one for what is missing.

  Args:
    document: the source document.
    outcomes: the outcomes of all studies.
  """
  found = [
    (papers, one, claim)
    for one in outcomes
    for claim in one['claims']
    if (papers := _papers(document, one, claim))
  ]
  found.sort(key=lambda each: document.papers.index(each[0][0]))
  names = {paper.arxiv: paper.name for paper in document.papers}
  return [
    *(_row(*each) for each in found),
    *(_missing(names[gap.arxiv], gap) for gap in document.missing),
  ]


def _papers(
  document: Document, one: records.Record, claim: Claim
) -> list[Paper]:
  """Return the papers of a document that make a claim.

  They are named in the source of the claim. Without a number there, it is the
  first paper that its study names.
  """
  if not claim.is_of_papers:
    return []
  if 'arXiv' in claim.source:
    return [p for p in document.papers if p.arxiv in claim.source]
  return [p for p in document.papers if p.arxiv in one['paper']][:1]


def _section(document: Document, outcomes: Sequence[records.Record]) -> str:
  table = tables.markdown(rows_of(document, outcomes), COLUMNS)
  return f'\n## {document.title}\n\n{table}'


def _row(
  papers: Sequence[Paper], one: records.Record, claim: Claim
) -> dict[str, str]:
  name, scale = one['name'], one['scale']
  return {
    'paper': '; '.join(paper.name for paper in papers),
    'claim': claim.text.replace('*', r'\*').replace('_', r'\_') + claim.caveat,
    'study': f'[{name}](results.md#{name}-{scale})',
    'verdict, or why not': claim.outcome,
  }


def _missing(paper: str, gap: Missing) -> dict[str, str]:
  return {
    'paper': paper,
    'claim': gap.text,
    'study': '',
    'verdict, or why not': f'not attempted: {gap.why}',
  }
