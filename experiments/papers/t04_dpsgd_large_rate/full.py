"""Full scale: ResNet-18 from scratch on CIFAR-10, after Zhu et al. 2023."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from experiments.papers import target
from experiments.papers.claims import Claim
from experiments.papers.conditions import above, below
from experiments.papers.quantities import by_case, number
from experiments.papers.rules import Rule
from experiments.papers.target import Outcome, Setting
from experiments.tools import drawing, styles

# From the scripts and released logs of Zhu et al. 2023.
SETTING: dict[str, Any] = {
  'dataset': 'cifar10',
  'model': 'resnet18',
  'num_replicas': 16,
  'momentum': 0.0,
  'weight_decay': 0.0,
  'partition': 'sharded',
  'num_steps': 6000,
  'seed': 0,
}
DROPS, EXAMPLES = (2400, 4800), 50000
RATES = {1024: 0.1, 8192: 0.8}
ALGORITHMS = {'all-reduce': 'ssgd', 'ring': 'd_psgd'}
PAPER = {
  1024: {'all-reduce': 83.99, 'ring': 83.56},
  8192: {'all-reduce': 80.37, 'ring': 82.83},
}
# At scale 'test', smaller values because the test must be quick.
TEST_SIZE = {
  'dataset': 'digits',
  'model': 'mlp',
  'num_replicas': 3,
  'num_steps': 2,
}


def measure(setting: Setting) -> Outcome:
  """Train the row from scratch; at scale 'test', a few steps of it."""
  found: dict[str, dict[str, Any]] = {}
  test = setting.scale == 'test'
  batches = [max(RATES)] if test else list(RATES)
  for batch in batches:
    found[str(batch)] = {}
    for label, algorithm in ALGORITHMS.items():
      drops = [step * batch / EXAMPLES for step in DROPS]
      fields = {
        **SETTING,
        'batch_size': batch // SETTING['num_replicas'],
        'learning_rate': RATES[batch],
        'learning_rate_drops': drops,
        'log_every': 50,
        'eval_every': 250,
        'checkpoint_every': 500,
      }
      if test:
        few = dict.fromkeys(target.INTERVALS, 1)
        fields.update(TEST_SIZE, batch_size=batch // 512, **few)
      options = {'mixing': 'ring'} if algorithm == 'd_psgd' else {}
      records = target.train(setting, algorithm, options, **fields)
      tested = [r for r in records if 'test_accuracy' in r]
      found[str(batch)][label] = {
        'step': [r['step'] for r in tested],
        'accuracy': [100 * r['test_accuracy'] for r in tested],
      }
  return Outcome(_claims(found), {'full': found}, [SETTING['seed']])


def _claims(found: Mapping[str, Any]) -> list[Claim]:
  return [
    _claim(int(batch), {m: run['accuracy'][-1] for m, run in runs.items()})
    for batch, runs in found.items()
  ]


def _claim(batch: int, ends: Mapping[str, float]) -> Claim:
  paper = PAPER[batch]
  wins = paper['ring'] > paper['all-reduce'] + 1
  gain = ends['ring'] - ends['all-reduce']
  ahead, apart = 'ring minus all-reduce', 'difference of the two'
  return Claim(
    text='ResNet-18 from scratch on CIFAR-10, 16 workers, total batch '
    f'{batch}: '
    + ('the ring is more accurate.' if wins else 'both are alike.'),
    source='stated in the released logs of Zhu et al. 2023, one seed',
    measured={
      **({ahead: number(gain, 'points')} if wins else {}),
      **({} if wins else {apart: number(abs(gain), 'points')}),
      'test accuracy': by_case(ends, '%'),
      'in the paper': by_case(paper, '%'),
    },
    rule=Rule(above(ahead, 1), above(ahead, 0))
    if wins
    else Rule(below(apart, 1), below(apart, 2)),
    setting='Images are 32 x 32; theirs are enlarged to 56. No augmentation, '
    'as there. Every worker has its own batch statistics.',
  )


def draw(found: Mapping[str, Any], figure: Figure) -> None:
  """Draw the test error against steps, for both batches."""
  axes = figure.subplots(1, len(found), squeeze=False)[0]
  for ax, (batch, runs) in zip(axes, found.items(), strict=True):
    for label, run in runs.items():
      error = 100 - np.array(run['accuracy'])
      style = styles.method(ALGORITHMS[label])
      drawing.curve(ax, run['step'], error, style, label=label)
    drawing.log(ax, 'y')
    ax.set(xlabel='steps', ylabel='test error, %', title=f'total batch {batch}')
  drawing.legend_below(figure)
