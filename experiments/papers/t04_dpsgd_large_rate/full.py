"""Full scale: ResNet-18 from scratch on CIFAR-10, after Zhu et al. 2023."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from experiments.papers import target
from experiments.papers.target import Claim, Outcome, Setting, verdict
from experiments.tools import drawing, styles

# Zhu et al. 2023: what their scripts and released logs have.
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
# At scale 'test': what takes its place where that is there and quick.
TEST_SIZE = {
  'dataset': 'digits',
  'model': 'mlp',
  'num_replicas': 3,
  'num_steps': 2,
}


def measure(setting: Setting) -> Outcome:
  """Zhu et al.'s row from scratch; at scale 'test' a few steps of it."""
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
  claims = []
  for batch, runs in found.items():
    ends = {m: run['accuracy'][-1] for m, run in runs.items()}
    paper = PAPER[int(batch)]
    wins = paper['ring'] > paper['all-reduce'] + 1
    gap = ends['ring'] - ends['all-reduce']
    claims.append(
      Claim(
        f'ResNet-18 from scratch, CIFAR-10, 16 workers, total batch {batch}: '
        f'all-reduce {paper["all-reduce"]} %, ring {paper["ring"]} % (Zhu et '
        'al. 2023, their released logs, one seed) [S]',
        ', '.join(f'{m} {v:.2f} %' for m, v in ends.items()),
        verdict(gap > 1, partly=gap > 0)
        if wins
        else verdict(abs(gap) < 1, partly=abs(gap) < 2),
        (
          'rule: the ring more than 1 point above; partly if above. '
          if wins
          else 'rule: less than 1 point apart; partly if 2. '
        )
        + 'Images of 32 x 32, theirs are enlarged to 56; no augmentation, as '
        'there; batch statistics of every worker its own',
      )
    )
  return claims


def draw(found: Mapping[str, Any], figure: Figure) -> None:
  """Test error against steps, for both batches."""
  axes = figure.subplots(1, len(found), squeeze=False)[0]
  for ax, (batch, runs) in zip(axes, found.items(), strict=True):
    for label, run in runs.items():
      error = 100 - np.array(run['accuracy'])
      style = styles.method(ALGORITHMS[label])
      drawing.curve(ax, run['step'], error, style, label=label)
    drawing.log(ax, 'y')
    ax.set(xlabel='steps', ylabel='test error, %', title=f'total batch {batch}')
  drawing.legend_below(figure)
