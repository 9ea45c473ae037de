"""The MLP of T1, with the best rate of synchronous SGD and with lower ones."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
# All are tried for SSGD. PR-SGD has its best one, and those that are lower by
# these numbers of places, of which each halves the rate.
RATES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
PLACES = (0, 1, 2, 4)
# Fractions of the run at which the rate falls to a tenth, as in the paper.
DROPS = (150 / 300, 225 / 300)
SEEDS, EVERY = (0, 1, 2, 3, 4), 16
ONE_SHOT = 'one average'


class Trained(NamedTuple):
  """The histories of the MLP.

  Attributes:
    by_rate: all runs, by rate; first the best rate of SSGD.
    synchronous: SSGD only, with every rate of `RATES`.
  """

  by_rate: dict[str, Histories]
  synchronous: dict[str, list[list[records.Record]]]


def train(setting: Setting) -> Trained:
  """Train an MLP with SSGD at all rates, and with PR-SGD at some of them."""
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
  spent = [_spent(setting, *one[1:]) for one in listed]
  alone = [_records(spent[0], _at(synchronous, k)) for k in range(len(RATES))]
  # If the best is near the lowest, fewer rates are left.
  chosen = list(dict.fromkeys(max(best - place, 0) for place in PLACES))
  pairs = [(RATES[k], o['period']) for k in chosen for _, _, o in listed[1:]]
  rates, periods = (jnp.asarray(v) for v in zip(*pairs, strict=True))
  averaged = run(
    lambda i: pr.pr_sgd(
      _dropping(rates[i.astype(int)]),
      period=classifying.every(periods[i.astype(int)]),
    ),
    range(len(pairs)),
  )
  each = len(listed) - 1
  by_rate: dict[str, Histories] = {}
  for place, k in enumerate(chosen):
    own: Histories = {runs.SSGD: alone[k]}
    for i, ((label, _, _), at) in enumerate(
      zip(listed[1:], spent[1:], strict=True)
    ):
      own[label] = _records(at, _at(averaged, place * each + i))
    by_rate[f'{RATES[k]:g}'] = own
  return Trained(
    by_rate, {f'{r:g}': own for r, own in zip(RATES, alone, strict=True)}
  )


def _at(found: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
  """Return the observations of one of the settings."""
  return {name: of[index] for name, of in found.items()}


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
