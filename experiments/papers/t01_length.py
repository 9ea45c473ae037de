"""How the gap between SSGD and PR-SGD shrinks with the length of the run.

The paper has one length. Here the schedule of `t01_long` is shortened as a
whole: 20 to 300 epochs, with drops of the rate at 1/2 and 3/4 of each.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

from matplotlib.figure import Figure
import numpy as np

from experiments.papers import t01_long
from experiments.papers.claims import DERIVED, Claim
from experiments.papers.conditions import All, below, every, some
from experiments.papers.headline import curves as numbers
from experiments.papers.headline import judging
from experiments.papers.headline import setting as runs
from experiments.papers.headline.curves import Curve, Curves
from experiments.papers.pieces import Piece
from experiments.papers.quantities import Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles

SEEDS = t01_long.SEEDS
LONGEST = runs.EPOCHS
LABELS = ('I = 32', 'I = 4', 'I = 16', 'I = 8')
SHOWN = (runs.SSGD, *LABELS)
# The largest gap. Only these two curves have several seeds at each length.
PAIR = SHOWN[:2]


class Priorities(NamedTuple):
  """When the runs of one length take place.

  Attributes:
    pair: priority of `PAIR` with the first seed.
    intervals: priority of the other intervals.
    seeds: priority of `PAIR` with the other seeds.
  """

  pair: int
  intervals: int
  seeds: int


# Length -> priorities. Short runs come first, because they take minutes.
PRIORITIES = {
  20: Priorities(1, 5, 6),
  40: Priorities(2, 31, 32),
  75: Priorities(0, 31, 33),
  150: Priorities(15, 35, 36),
}
LENGTHS = (*PRIORITIES, LONGEST)


def pieces(setting: Setting) -> Sequence[Piece]:
  """Return the shorter runs; those of 300 epochs belong to `t01_long`."""
  by_length = _by_length(setting)
  return [piece for epochs in PRIORITIES for piece in by_length[epochs]]


def _by_length(setting: Setting) -> dict[int, list[Piece]]:
  """Return the runs of each length."""
  longest = setting._replace(
    workdir=setting.workdir.parent
    / setting.workdir.name.replace('t01_length', 't01_long')
  )
  found = {
    epochs: [
      *runs.small(
        setting,
        SHOWN,
        SEEDS[:1],
        epochs=epochs,
        priorities={
          (x, SEEDS[0]): order.pair if x in PAIR else order.intervals
          for x in SHOWN
        },
      ),
      *runs.small(
        setting,
        PAIR,
        SEEDS[1:],
        epochs=epochs,
        priorities={(x, seed): order.seeds for x in PAIR for seed in SEEDS},
      ),
    ]
    for epochs, order in PRIORITIES.items()
  }
  found[LONGEST] = [
    piece for piece in t01_long.pieces(longest) if piece.label in SHOWN
  ]
  return found


def measure(setting: Setting) -> Outcome:
  """Judge the finished curves; train nothing."""
  found: dict[str, Curves] = {}
  missing: list[str] = []
  for epochs, chosen in _by_length(setting).items():
    found[str(epochs)], left = numbers.read(chosen)
    missing += [f'{name} of {epochs} epochs' for name in left]
  hours = numbers.hours(pieces(setting))
  return outcome(found, missing, hours)


def outcome(
  found: dict[str, Curves], missing: Sequence[str], hours: float
) -> Outcome:
  """Return the outcome of some curves.

  Args:
    found: length in epochs as text -> its curves.
    missing: names of the pieces that are not among them.
    hours: time of the shorter runs.
  """
  gaps = {
    label: {
      epochs: values
      for epochs in found
      if (values := gaps_of(found[epochs], label))
    }
    for label in LABELS
  }
  shown = {label: own for label, own in gaps.items() if own}
  data = {'gaps': shown, 'hours': hours, 'missing': len(missing)}
  seeds = {
    int(seed)
    for own in found.values()
    for by_seed in own.values()
    for seed in by_seed
  }
  return Outcome(_claims(shown, missing), data, sorted(seeds))


def gaps_of(curves: Curves, label: str) -> dict[str, list[float]]:
  """Return what a curve loses to SSGD's; empty if one of them is missing.

  Returns:
    `accuracy`, the points of test accuracy, and `loss`, the factor of the
    training loss, both after the last step, for each seed.
  """
  pairs = numbers.paired(curves, label, runs.SSGD)
  if not pairs:
    return {}

  def loss(own: Curve, reference: Curve) -> float:
    return own['train_loss'][-1] / reference['train_loss'][-1]

  return {
    'accuracy': [numbers.lost(*pair) for pair in pairs],
    'loss': [loss(*pair) for pair in pairs],
  }


def _claims(
  gaps: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
  missing: Sequence[str],
) -> list[Claim]:
  """Judge each interval whose shortest and longest runs are finished."""
  shortest = str(LENGTHS[0])
  lengths = [
    epochs
    for epochs in map(str, LENGTHS)
    if any(shortest in own and epochs in own for own in gaps.values())
  ]
  if len(lengths) < 2:
    return []
  ends = shortest, lengths[-1]
  whole = [label for label, own in gaps.items() if all(e in own for e in ends)]

  def lost(epochs: str) -> Quantity:
    found = {x: y[epochs]['accuracy'] for x, y in gaps.items() if epochs in y}
    return by_case(found, 'points')

  names = {e: f'lost to SSGD after {e} epochs' for e in lengths}
  falls = All(
    tuple(
      every(below(names[longer], names[shorter]), [label])
      for label in whole
      for shorter, longer in itertools.pairwise(
        epochs for epochs in lengths if epochs in gaps[label]
      )
    )
  )
  return [
    Claim(
      text='The longer the run, the less accuracy an interval I loses.',
      source=f'{DERIVED} from Theorem 1, whose bound allows a larger I for '
      'more steps',
      measured={name: lost(epochs) for epochs, name in names.items()},
      rule=Rule(falls, some(below(names[ends[1]], names[ends[0]]), whole)),
      setting=t01_long.TEXT + ' Shorter runs have the drops of the rate at 1/2 '
      'and 3/4 of their length.',
      note=judging.unfinished(missing),
    )
  ]


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the gap in accuracy and in training loss against the length."""
  figure.set_size_inches(drawing.WIDTH, 4)
  axes = figure.subplots(1, 2)
  gaps = numbers.by_interval(data['gaps'])
  looks = styles.looks(dict.fromkeys(gaps, 'pr_sgd'))
  lengths = sorted({int(e) for own in gaps.values() for e in own})
  titles = {
    'accuracy': 'test accuracy lost to SSGD, points',
    'loss': 'training loss relative to SSGD',
  }
  for axis, (name, title) in zip(axes, titles.items(), strict=True):
    for label, own in gaps.items():
      at = sorted(own, key=int)
      values = [own[epochs][name] for epochs in at]
      drawing.curve(
        axis,
        [int(epochs) for epochs in at],
        [np.mean(seeds) for seeds in values],
        looks[label],
        label=runs.title(label),
        low=[min(seeds) for seeds in values],
        high=[max(seeds) for seeds in values],
      )
    axis.axhline(0 if name == 'accuracy' else 1, color='black', lw=0.8)
    axis.set_xlabel('length of the run, epochs')
    axis.set_ylabel(title)
    drawing.log(axis, 'x')
    axis.set_xticks(lengths, [str(epochs) for epochs in lengths])
    axis.minorticks_off()
  drawing.legend_below(figure)


TARGET = Target(
  name='t01_length',
  title='The gap between SSGD and PR-SGD over the length of the run',
  paper='not in a paper: a question to the figure of Yu, Yang, Zhu 2019',
  measure=measure,
  draw=draw,
  scales=('long',),
  pieces=pieces,
  judges_part=True,
)
