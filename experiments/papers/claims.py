"""Claims as data: text, numbers, a rule and its verdict in one object."""

from typing import Any, NamedTuple

from experiments.papers import quantities, resampling, rules
from experiments.papers.quantities import Measured, Table
from experiments.papers.rules import Rule, Verdict
from experiments.running.records import json_files

# Origins of a claim.
STATED = 'stated in the paper'
DERIVED = 'derived here'
RECALLED = 'recalled, not verified against the paper'
OURS = 'a check of our own'


class Claim(NamedTuple):
  """One statement of a paper, with the numbers and the rule that judge it.

  Attributes:
    text: the statement.
    source: origin of the statement, such as `STATED` or `DERIVED`.
    measured: quantity -> its measured values.
    rule: condition under which the claim is reproduced.
    setting: how the numbers were measured. Default: empty.
    note: further remarks, such as earlier trials. Default: empty.
  """

  text: str
  source: str
  measured: Measured
  rule: Rule
  setting: str = ''
  note: str = ''

  @property
  def verdict(self) -> Verdict:
    """The outcome of the rule for the measured numbers."""
    return self.rule.verdict(self.measured)

  @property
  def sentence(self) -> str:
    """The rule in words."""
    return self.rule.sentence(self.measured)

  @property
  def is_of_papers(self) -> bool:
    """Whether a paper makes the claim; others are derived here or our own."""
    return self.source.startswith((STATED, 'stated in', RECALLED))

  @property
  def caveat(self) -> str:
    """A remark for tables if the statement is recalled, entirely or partly."""
    if self.source.startswith('recalled'):
      return ' (recalled, not verified)'
    return ' (in part recalled, not verified)' if self.is_recalled else ''

  @property
  def is_recalled(self) -> bool:
    """Whether the statement, or a part of it, is recalled from a paper."""
    return 'recalled' in self.source

  @property
  def num_seeds(self) -> int:
    """The fewest seeds of a number that has any; 0 without seeds."""
    return resampling.num_seeds(self.measured)

  def resampled(self) -> dict[Verdict, float]:
    """Return the fraction of each verdict when the seeds are drawn again."""
    return resampling.verdicts(self.rule, self.measured)

  @property
  def outcome(self) -> str:
    """The verdict, and how far it depends on the seeds, if it may.

    It names the number of seeds if they are too few to be drawn again, and its
    fraction if other seeds change it.
    """
    few = ('no seeds', 'one seed', 'two seeds')[: resampling.FEWEST_SEEDS]
    if self.num_seeds < len(few):
      return f'{self.verdict} ({few[self.num_seeds]})'
    shares = self.resampled() or {self.verdict: 1.0}
    if shares.get(self.verdict, 0.0) >= resampling.SURE:
      return self.verdict
    share = resampling.percentages(shares).get(self.verdict, 0)
    return f'{self.verdict} ({share}%)'

  def tables(self) -> list[Table]:
    """Return the measured numbers as small tables of text."""
    return quantities.tables(self.measured)


def to_json(claim: Claim) -> dict[str, Any]:
  """Encode a claim.

  The verdict is for readers only; `from_json` evaluates it again.
  """
  return {
    'text': claim.text,
    'source': claim.source,
    'verdict': claim.verdict,
    'rule': rules.to_json(claim.rule),
    'measured': quantities.to_json(claim.measured),
    'setting': claim.setting,
    'note': claim.note,
  }


def from_json(value: Any) -> Claim:
  """Decode a claim.

  Raises:
    ValueError: if it has another form, or the rule does not fit the numbers.
  """
  if reason := _TEXTS(value):
    raise ValueError(reason)
  claim = Claim(
    value['text'],
    value['source'],
    quantities.from_json(value['measured']),
    rules.from_json(value['rule']),
    value.get('setting', ''),
    value.get('note', ''),
  )
  claim.verdict  # noqa: B018 - raises where the rule does not fit
  return claim


_TEXTS = json_files.object_of(
  {
    **dict.fromkeys(('text', 'source'), json_files.text),
    **dict.fromkeys(('rule', 'measured'), json_files.object_of({})),
  },
  dict.fromkeys(('setting', 'note'), json_files.string),
)


def check(value: Any) -> str | None:
  """Accept an encoded claim, as a `json_files.Check`."""
  try:
    from_json(value)
  except ValueError as error:
    return str(error)
  return None
