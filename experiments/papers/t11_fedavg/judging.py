"""The rule that decides whether rounds fall with the work of a client.

It is taken from Table 2 of McMahan et al. 2017, recalled and not verified.
There, the CNN with unlike data needs 483, 600, 350 and 229 rounds as the work u
grows. These rise once, and have a rank correlation of -0.8 with u. The paper
counts them as falling, so this rule does, too: the most work needs the fewest
rounds, and the correlation is at most -0.8. The paper has one run of each. With
several seeds, the most work must also need fewer rounds than the least work for
most pairs of seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.papers.conditions import (
  All,
  Ref,
  at_least,
  at_most,
  below,
  every,
  mostly,
)
from experiments.papers.quantities import Quantity, by_case, number
from experiments.papers.rules import Rule

# The rank correlation of the recalled row. A billionth is for rounding.
CORRELATION = -0.8 + 1e-9
NAME = 'rank correlation of work and rounds'
SETTING = (
  'By this rule, the rows of the paper with like and unlike data are yes: 626, '
  '65, 34, 20 and 483, 600, 350, 229 (recalled, not verified).'
)


def measured(rounds: str, values: Mapping[str, Any]) -> dict[str, Quantity]:
  """Return the rounds by work, and their rank correlation.

  Args:
    rounds: the name of the quantity.
    values: case -> the rounds of each seed; the work grows from case to case.
  """
  means = [float(np.mean(own)) for own in values.values()]
  ranks = stats.rankdata(means)
  # Equal numbers do not fall, and have no correlation.
  found = 0.0
  if np.ptp(ranks):
    found = stats.spearmanr(np.arange(len(means)), ranks).statistic
  return {rounds: by_case(values), NAME: number(found)}


def rule(rounds: str, cases: Sequence[str]) -> Rule:
  """Return the rule that rounds fall from the first case to the last."""
  fewest = every(at_least(rounds, Ref(rounds, cases[-1])))
  fewer = below(Ref(rounds, cases[-1]), Ref(rounds, cases[0]))
  return Rule(All((fewest, at_most(NAME, CORRELATION), mostly(fewer))), fewer)
