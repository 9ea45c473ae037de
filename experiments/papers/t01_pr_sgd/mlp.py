"""The MLP of T1, with the best rate of synchronous SGD and with lower ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from experiments.papers import classifying
from experiments.papers.simulation import simulate
from experiments.papers.t01_pr_sgd import runs
from experiments.papers.t01_pr_sgd.runs import Histories
from experiments.papers.target import Setting, make_config
from experiments.running.execution import experiment
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax import ledger, models
from prsgd_jax.data.datasets import load_dataset

FIELDS: dict[str, Any] = {
  **runs.COMMON,
  'dataset': 'digits',
  'model': 'mlp',
  'batch_size': 16,
  'num_steps': 640,
}
# SSGD has the best of them, and PR-SGD the same one. The others of PR-SGD are
# lower by these factors.
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
FACTORS = (1.0, 0.25, 0.0625)
# Fractions of the run at which the rate falls to a tenth, as in the paper.
DROPS = (150 / 300, 225 / 300)
SEEDS, EVERY = (0, 1, 2, 3, 4), 16
ONE_SHOT = 'one average'


def train(setting: Setting) -> dict[str, Histories]:
  """Train an MLP; return its histories by rate, first the best one of SSGD."""
  digits = load_dataset(FIELDS['dataset'], setting.data_dir)
  problem = classifying.problem(
    models.MLP(digits.num_classes), digits, batch_size=FIELDS['batch_size']
  )

  def run(make: Any, settings: Sequence[float]) -> dict[str, np.ndarray]:
    found = simulate(
      make,
      settings,
      SEEDS,
      loss_fn=problem.loss_fn,
      start=problem.start,
      num_replicas=FIELDS['num_replicas'],
      num_steps=FIELDS['num_steps'],
      observe=problem.observe,
      every=EVERY,
    )
    # A finite number, because JSON has no NaN.
    return {n: np.nan_to_num(v, nan=1e9, posinf=1e9) for n, v in found.items()}

  synchronous = run(lambda rate: pr.ssgd(_dropping(rate)), RATES)
  best = int(synchronous['loss'][:, :, -1].mean(axis=1).argmin())
  never = (ONE_SHOT, 'pr_sgd', {'period': FIELDS['num_steps']})
  listed = [*runs.listed(), never]
  pairs = [(f, o['period']) for f in FACTORS for _, _, o in listed[1:]]
  factors, periods = (jnp.asarray(v) for v in zip(*pairs, strict=True))
  lower = run(lambda factor: pr.ssgd(_dropping(RATES[best] * factor)), FACTORS)
  averaged = run(
    lambda i: pr.pr_sgd(
      _dropping(RATES[best] * factors[i.astype(int)]),
      period=classifying.every(periods[i.astype(int)]),
    ),
    range(len(pairs)),
  )
  spent = [_spent(setting, *one[1:]) for one in listed]
  histories: dict[str, Histories] = {}
  for k, factor in enumerate(FACTORS):
    each = len(listed) - 1
    found = {
      name: np.concatenate(
        [lower[name][k : k + 1], averaged[name][k * each : (k + 1) * each]]
      )
      for name in averaged
    }
    histories[f'{RATES[best] * factor:g}'] = {
      label: _records(at, {name: of[i] for name, of in found.items()})
      for i, ((label, _, _), at) in enumerate(zip(listed, spent, strict=True))
    }
  return histories


def _dropping(rate: Any) -> optax.GradientTransformation:
  """Return SGD whose rate falls to a tenth at each of `DROPS`."""
  drops = [round(FIELDS['num_steps'] * drop) for drop in DROPS]

  def schedule(step: Any) -> Any:
    return rate * 0.1 ** sum((step >= drop) * 1.0 for drop in drops)

  return optax.sgd(schedule, momentum=FIELDS['momentum'])


def _spent(
  setting: Setting, algorithm: str, options: Mapping[str, int]
) -> list[records.Record]:
  """Return step, epoch and modeled time of every observation of the MLP."""
  fields = {**FIELDS, 'learning_rate': RATES[0]}
  run_config = make_config(algorithm, options, **fields)
  digits = load_dataset(FIELDS['dataset'], setting.data_dir)
  parts = experiment.assemble(run_config, digits, None, runs.NETWORK)
  steps = range(EVERY, FIELDS['num_steps'] + 1, EVERY)
  return [
    {
      'step': step,
      'epoch': parts.epoch(spent.gradients),
      'modeled_seconds': spent.seconds,
    }
    for step, spent in zip(
      steps, ledger.spent_at(parts.meter, steps), strict=True
    )
  ]


def _records(
  at: Sequence[records.Record], found: Mapping[str, np.ndarray]
) -> list[list[records.Record]]:
  """Return the history of each seed from observations [seeds, points]."""
  return [
    [
      {**one, **{name: float(of[k, i]) for name, of in found.items()}}
      for i, one in enumerate(at)
    ]
    for k in range(len(SEEDS))
  ]
