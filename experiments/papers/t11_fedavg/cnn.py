"""Full scale: LeNet-5 on MNIST, 100 clients with 600 images each."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from experiments.papers import speed
from experiments.papers.claims import STATED, Claim
from experiments.papers.quantities import by_case
from experiments.papers.t11_fedavg import judging
from experiments.papers.target import Outcome, Setting, train
from experiments.tools import drawing, styles

CLIENTS, OWN, PARTICIPATION = 100, 600, 0.1
ACCURACY = 0.99
SEEDS = (0,)
RATES = (0.03, 0.1, 0.3)
# (E, B, number of rounds); the first is FedSGD.
WORKS = ((1, OWN, 1000), (1, 50, 400), (1, 10, 150), (5, 10, 80))
# Table 2 of the paper, its CNN: rounds to 99 %, like and unlike data.
PAPER = {
  'like': (626, 65, 34, 20),
  'unlike': (483, 600, 350, 229),
}
PARTITIONS: dict[str, dict[str, Any]] = {
  'like': {'partition': 'sharded'},
  'unlike': {'partition': 'dirichlet', 'dirichlet_alpha': 0.1},
}
FIELDS: dict[str, Any] = {
  'dataset': 'mnist',
  'model': 'lenet',
  'num_replicas': CLIENTS,
  'momentum': 0.0,
}
# At scale 'test', smaller values because the test must be quick.
TEST_SIZE = {'dataset': 'digits', 'model': 'mlp', 'num_replicas': 2}


def measure(setting: Setting) -> Outcome:
  """Measure accuracy by rounds for every E, B and rate (a test: 2 rounds)."""
  test = setting.scale == 'test'
  works = WORKS[-1:] if test else WORKS
  found: dict[str, list[dict[str, Any]]] = {}
  for name, partition in PARTITIONS.items():
    found[name] = [
      _by_rate(setting, partition, *work, test=test) for work in works
    ]
  data = {'found': found, 'target': ACCURACY}
  return Outcome(
    [_claim(found, name) for name in PARTITIONS], {'cnn': data}, SEEDS
  )


def _by_rate(
  setting: Setting,
  partition: Mapping[str, Any],
  epochs: int,
  batch: int,
  rounds: int,
  *,
  test: bool,
) -> dict[str, Any]:
  """Return the curves of the rate that reaches the accuracy first."""
  updates = epochs * OWN // batch
  options: dict[str, Any] = {'period': updates, 'participation': PARTICIPATION}
  size: dict[str, Any] = {'batch_size': batch, 'num_steps': updates * rounds}
  if test:
    options = {'period': 2, 'participation': 0.5}
    size = {**TEST_SIZE, 'batch_size': 2, 'num_steps': 4}
  every = options['period']
  intervals = {'log_every': every, 'eval_every': every}
  runs = []
  for rate in RATES[:1] if test else RATES:
    histories = [
      train(
        setting,
        'fedavg',
        options,
        **{**FIELDS, **partition, **size, **intervals},
        checkpoint_every=every * 2,
        learning_rate=rate,
        seed=seed,
      )
      for seed in SEEDS
    ]
    curves = [[r['test_accuracy'] for r in history] for history in histories]
    runs.append(
      {'epochs': epochs, 'batch': batch, 'rate': rate, 'curves': curves}
    )
  return min(runs, key=lambda run: np.mean(_reached(run)))


def _reached(run: Mapping[str, Any]) -> list[float]:
  """Return the rounds to the accuracy by seed, infinity if not reached."""
  return [
    speed.when_reached(
      np.arange(1, len(curve) + 1), -np.array(curve), -ACCURACY
    )
    for curve in run['curves']
  ]


def _claim(found: Mapping[str, list[dict[str, Any]]], name: str) -> Claim:
  runs = {f'E = {r["epochs"]}, B = {r["batch"]}': r for r in found[name]}
  paper = dict(zip((f'E = {e}, B = {b}' for e, b, _ in WORKS), PAPER[name]))
  rounds = 'rounds'
  return Claim(
    text=f'Rounds to {ACCURACY:.0%} fall with the work of a client ({name} '
    'data).',
    source=f'{STATED}: its Table 2, recalled and not verified',
    measured={
      **judging.measured(
        rounds, {case: _reached(run) for case, run in runs.items()}
      ),
      'in the paper': by_case({case: paper[case] for case in runs}),
      'learning rate': by_case({case: r['rate'] for case, r in runs.items()}),
    },
    rule=judging.rule(rounds, tuple(runs)),
    setting=f'The best of the rates {", ".join(map(str, RATES))}; one seed; C '
    f'= {PARTICIPATION:g}. The first is FedSGD. LeNet-5 replaces a CNN of 1.7 '
    'million parameters. Unlike data have label skew by Dirichlet with 0.1; '
    f'in the paper, they are two shards of one class. {judging.SETTING}',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the error against rounds, for like and unlike data."""
  axes = figure.subplots(1, len(data['found']), squeeze=False)[0]
  for axis, (name, runs) in zip(axes, data['found'].items(), strict=True):
    # More work between averages is lighter.
    looks = styles.variants('fedavg', range(len(runs)))
    by_work = sorted(runs, key=lambda run: run['epochs'] / run['batch'])
    for run, style in zip(by_work, looks.values(), strict=True):
      best = np.maximum.accumulate(run['curves'], axis=1)
      label = f'E = {run["epochs"]}, B = {run["batch"]}'
      rounds = np.arange(1, best.shape[1] + 1)
      error = drawing.error_percent(best.mean(axis=0))
      drawing.curve(axis, rounds, error, style, label=label)
    target = 100 * (1 - data['target'])
    axis.axhline(target, color='k', ls=':', label='target')
    axis.set(xlabel='rounds', ylabel='lowest test error so far, %')
    axis.set_title(f'{name} data')
    axis.set_xscale('log')
    drawing.log(axis, 'y')
  drawing.legend_below(figure)
