"""The table of the claims of the source documents."""

from absl.testing import absltest

from experiments import reproduce
from experiments.papers import claims, results_page, sources, sources_page
from experiments.papers.conditions import below
from experiments.papers.quantities import number
from experiments.papers.rules import Rule
from experiments.papers.sources import Document, Missing, Paper

DOCUMENT = Document(
  'one',
  (Paper('A 2001', '0101.00001'), Paper('B 2002', '0202.00002')),
  (
    Missing('0101.00001', 'too large', 'no hardware'),
    Missing('0202.00002', 'not yet', 'no study'),
  ),
)


def outcome(paper, *made):
  return {'name': 't99_test', 'scale': 'cpu', 'paper': paper, 'claims': made}


def claim(text, source, value=0.0):
  return claims.Claim(
    text, source, {'x': number(value)}, Rule(below('x', 1)), 'a setting'
  )


class RowsTest(absltest.TestCase):
  def rows(self, *outcomes):
    return [
      tuple(row.values()) for row in sources_page.rows_of(DOCUMENT, outcomes)
    ]

  def test_lists_the_papers_claims_and_what_is_missing(self):
    found = self.rows(
      outcome(
        'A (arXiv 0101.00001)',
        claim('it works', claims.STATED),
        claim('so it follows', claims.DERIVED),
        claim('a check', claims.OURS),
      ),
      outcome('another (arXiv 0909.00009)', claim('other', claims.STATED)),
    )
    link = '[t99_test](results.md#t99_test-cpu)'
    self.assertEqual(
      found,
      [
        ('A 2001', 'it works', link, 'yes (no seeds)'),
        ('A 2001', 'too large', '', 'not attempted: no hardware'),
        ('B 2002', 'not yet', '', 'not attempted: no study'),
      ],
    )

  def test_claims_of_a_study_of_two_papers_are_the_first_ones(self):
    found = self.rows(
      outcome('0202.00002', claim('later', claims.RECALLED, 2.0)),
      outcome('0101.00001 and 0202.00002', claim('first', claims.STATED)),
    )
    self.assertEqual(
      [(row[0], row[1], row[3]) for row in found[:2]],
      [
        ('A 2001', 'first', 'yes (no seeds)'),
        ('B 2002', 'later (recalled, not verified)', 'no (no seeds)'),
      ],
    )
    self.assertLen(found, 4)

  def test_the_source_of_a_claim_names_its_papers(self):
    sources_of = {
      'second': 'arXiv 0202.00002',
      'both': 'arXiv 0101.00001 and arXiv 0202.00002',
      'foreign': 'arXiv 0909.00009',
    }
    found = self.rows(
      outcome(
        '0101.00001 and 0202.00002',
        *(
          claim(text, f'{claims.STATED}, {source}')
          for text, source in sources_of.items()
        ),
      )
    )
    self.assertEqual(
      [row[:2] for row in found[:-2]],
      [('A 2001; B 2002', 'both'), ('B 2002', 'second')],
    )


class PageTest(absltest.TestCase):
  def test_page_is_made_from_the_kept_outcomes(self):
    outcomes = results_page.read(reproduce.RESULTS)
    self.assertEqual(
      sources_page.PAGE.read_text(), sources_page.format_page(outcomes)
    )

  def test_every_missing_claim_is_of_a_paper_of_its_document(self):
    for document in sources.DOCUMENTS:
      known = {paper.arxiv for paper in document.papers}
      self.assertLessEqual({gap.arxiv for gap in document.missing}, known)

  def test_every_paper_has_a_row(self):
    outcomes = results_page.read(reproduce.RESULTS)
    for document in sources.DOCUMENTS:
      rows = sources_page.rows_of(document, outcomes)
      named = {name for row in rows for name in row['paper'].split('; ')}
      self.assertEqual(named, {paper.name for paper in document.papers})


class OriginTest(absltest.TestCase):
  def test_claims_of_papers_are_told_from_ours(self):
    for source, expected in (
      (claims.STATED, True),
      (f'{claims.STATED}; the limits are ours', True),
      ('stated in the released logs', True),
      (claims.RECALLED, True),
      (claims.DERIVED, False),
      (claims.OURS, False),
      ('a control of our own', False),
    ):
      self.assertIs(claim('x', source).is_of_papers, expected, source)

  def test_what_is_recalled_is_marked(self):
    for source, caveat in (
      (claims.STATED, ''),
      (claims.RECALLED, ' (recalled, not verified)'),
      (
        f'{claims.STATED}; the constant: {claims.RECALLED}',
        ' (in part recalled, not verified)',
      ),
    ):
      self.assertEqual(claim('x', source).caveat, caveat)

  def test_a_verdict_that_depends_on_the_seeds_says_so(self):
    sure = claim('x', claims.STATED, [0.1, 0.2, 0.3])
    unsure = claim('x', claims.STATED, [0.0, 0.0, 2.8])
    self.assertEqual(sure.outcome, 'yes')
    self.assertRegex(unsure.outcome, r'^yes \(7\d%\)$')


if __name__ == '__main__':
  absltest.main()
