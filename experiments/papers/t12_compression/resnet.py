"""Full scale: ResNet-20 on CIFAR-10, 8 replicas, accuracy against bytes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import Ref, above, every, some
from experiments.papers.quantities import by_case
from experiments.papers.rules import Rule
from experiments.papers.target import Outcome, Setting, train
from experiments.tools import drawing, styles

SSGD = 'SSGD'
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
  SSGD: ('ssgd', {}),
  'QSGD, s = 7': ('qsgd', {'levels': 7}),
  'TernGrad': ('terngrad', {}),
  'signSGD, majority': ('sign_sgd', {}),
  'top 5 %, error feedback': (
    'error_feedback_sgd',
    {'compressor': 'top_k:0.05'},
  ),
}
# Other rates for signs, because their steps have one size.
RATES = dict.fromkeys(METHODS, (0.05, 0.1, 0.2))
RATES['signSGD, majority'] = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
FIELDS: dict[str, Any] = {
  'dataset': 'cifar10',
  'model': 'resnet20',
  'num_replicas': 8,
  'batch_size': 32,
  'learning_rate_drops': (100.0, 150.0),
  'weight_decay': 1e-4,
  'momentum': 0.9,
  'augment': True,
  'num_epochs': 200.0,
  'log_every': 65,
  'eval_every': 975,
  'checkpoint_every': 975,
}
# At scale 'test', less of everything because the test must be quick.
TESTED = (SSGD, 'top 5 %, error feedback')
TEST_SIZE: dict[str, Any] = {
  'dataset': 'digits',
  'model': 'mlp',
  'num_replicas': 2,
  'batch_size': 2,
  'num_steps': 2,
  'log_every': 1,
  'eval_every': 1,
  'checkpoint_every': 1,
}


def measure(setting: Setting) -> Outcome:
  """Train with each compressor at its rates; in a test, two steps at one."""
  test = setting.scale == 'test'
  fields = FIELDS | TEST_SIZE if test else FIELDS
  seeds = SEEDS[:1] if test else SEEDS
  found = {}
  for name in TESTED if test else METHODS:
    algorithm, options = METHODS[name]
    runs = []
    for rate in RATES[name][:1] if test else RATES[name]:
      histories = [
        train(
          setting, algorithm, options, **fields, learning_rate=rate, seed=seed
        )
        for seed in seeds
      ]
      kept = [[r for r in h if 'test_accuracy' in r] for h in histories]
      runs.append(
        {
          'rate': rate,
          'bytes': [r['bytes_sent'] for r in kept[0]],
          'loss': [[r['loss'] for r in h] for h in kept],
          'accuracy': [[100 * r['test_accuracy'] for r in h] for h in kept],
        }
      )
    # By the training loss, because the test split is not for choosing.
    found[name] = min(runs, key=_final_loss)
  return Outcome([_claim(found)], {'resnet': found}, seeds)


def _final_loss(run: Mapping[str, Any]) -> float:
  ends = np.array([curve[-1] for curve in run['loss']])
  return float(np.where(np.isfinite(ends), ends, np.inf).mean())


def _claim(found: Mapping[str, Any]) -> Claim:
  # The least that a method sends in all, because every run has sent as much.
  budget = min(run['bytes'][-1] for run in found.values())
  ends = {
    name: [
      float(np.interp(budget, run['bytes'], curve)) for curve in run['accuracy']
    ]
    for name, run in found.items()
  }
  accuracy = 'test accuracy'
  others = [name for name in found if name != SSGD]
  better = above(accuracy, Ref(accuracy, SSGD))
  return Claim(
    text='At equal bytes, compressed gradients are more accurate.',
    source=f'{STATED}, without numbers',
    measured={
      accuracy: by_case(ends, '%'),
      'after all epochs': by_case(
        {n: [c[-1] for c in run['accuracy']] for n, run in found.items()}, '%'
      ),
      'learning rate': by_case({n: run['rate'] for n, run in found.items()}),
    },
    rule=Rule(every(better, others), some(better, others)),
    setting=f'After {budget / 1e6:.0f} MB from each replica. Each method has '
    'the rate with the lowest final training loss.',
  )


def draw(found: Mapping[str, Any], figure: Figure) -> None:
  """Draw the test error against bytes."""
  axis = figure.subplots()
  for name, run in found.items():
    errors = 100 - np.array(run['accuracy'])
    label = f'{name}, rate {run["rate"]:g}'
    style = styles.method(METHODS[name][0])
    sent = np.array(run['bytes']) / 1e6
    drawing.seeds(axis, sent, errors, style, label=label)
  axis.set_xscale('log')
  drawing.log(axis, 'y')
  axis.set(xlabel='MB sent by each replica', ylabel='test error, %')
  drawing.legend_below(figure)
