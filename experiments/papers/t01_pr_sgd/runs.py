"""The runs of T1, and the networks of their modeled time."""

from collections.abc import Sequence
from typing import Any

from experiments.papers import switching
from experiments.papers.pieces import Piece
from experiments.papers.target import (
  Setting,
  make_config,
  make_piece,
  train,
)
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.ledger.network import ETHERNET, Link

# The paper's intervals besides 1 and 128 (4 to 32 are recalled, not verified).
MODERATE = (4, 8, 16, 32)
PERIODS = (1, *MODERATE, 128)
LENET_PERIODS = (4, 16, 32, 128)

# One machine per replica on 1 Gb/s Ethernet. A gradient takes 1 ms because an
# accelerator needs about that long to start the kernels of a small model.
SLOW = Link(latency=50e-6, bandwidth=0.125e9)
NETWORK = pr.ledger.Network(
  links={'global': SLOW, 'group': SLOW, 'neighbor': SLOW}, step_time=1e-3
)
# The full setting's: 10 Gb/s, and 15 ms for ResNet-20 on 32 images.
FULL_NETWORK = pr.ledger.Network(
  links={'global': ETHERNET, 'group': ETHERNET, 'neighbor': ETHERNET},
  step_time=15e-3,
)

COMMON: dict[str, Any] = {'num_replicas': 8, 'momentum': 0.9}
LENET: dict[str, Any] = {
  **COMMON,
  'dataset': 'mnist',
  'model': 'lenet',
  'batch_size': 16,
  'learning_rate': 0.01,
  'num_epochs': 3.0,
}
# Of MNIST: 50 steps are an epoch.
LENET_SIZES = (6400, 1000)
LENET_SEEDS = (0, 1, 2)
FULL: dict[str, Any] = {
  **COMMON,
  'dataset': 'cifar10',
  'model': 'resnet20',
  'batch_size': 32,
  'learning_rate': 0.1,
  'learning_rate_drops': (150.0, 225.0),
  'weight_decay': 1e-4,  # recalled, not verified
  'augment': True,
  'num_epochs': 300.0,
}
FULL_FIELDS: dict[str, Any] = {
  **FULL,
  'log_every': 196,
  'eval_every': 980,
  'checkpoint_every': 980,
}
FULL_SEEDS, FULL_EXAMPLES = (0, 1, 2), 50_000
# The runs of a seed in the order that shows most first. I = 1 is almost SSGD.
FULL_ORDER = ('SSGD', 'I = 32', 'I = 4', 'I = 16', 'I = 8', 'I = 1')

SSGD = 'SSGD'

Histories = dict[str, list[list[records.Record]]]  # label -> one for each seed


def listed(
  periods: Sequence[int] = PERIODS,
) -> list[tuple[str, str, dict[str, int]]]:
  """Return the label, the algorithm and the options of each run."""
  averaged = [(f'I = {p}', 'pr_sgd', {'period': p}) for p in periods]
  return [(SSGD, 'ssgd', {}), *averaged]


def lenet(setting: Setting) -> Histories:
  """Train LeNet-5; the loss is on the replicas' batches."""
  whole = load_dataset(LENET['dataset'], setting.data_dir)
  chosen = listed(LENET_PERIODS)
  trained = switching.train_all(
    [
      make_config(algorithm, options, **LENET, seed=seed)
      for _, algorithm, options in chosen
      for seed in LENET_SEEDS
    ],
    switching.subset(whole, *LENET_SIZES),
    log_every=10,
    eval_every=30,
    network=NETWORK,
  )
  each = len(LENET_SEEDS)
  return {
    label: trained[i * each : (i + 1) * each]
    for i, (label, _, _) in enumerate(chosen)
  }


def full(setting: Setting, seeds: Sequence[int]) -> Histories:
  """Train in the paper's setting; in a test, train two MLPs for two steps."""
  fields, chosen = dict(FULL_FIELDS), full_runs()
  if setting.scale == 'test':
    chosen = chosen[:2]
    fields |= {'dataset': 'digits', 'model': 'mlp'}
    fields |= {'num_replicas': 2, 'batch_size': 2}
    fields |= {'num_steps': 2}
    fields |= {'log_every': 1, 'eval_every': 2, 'checkpoint_every': 2}
  return {
    label: [
      train(setting, algorithm, options, FULL_NETWORK, **fields, seed=seed)
      for seed in seeds
    ]
    for label, algorithm, options in chosen
  }


def full_runs() -> list[tuple[str, str, dict[str, int]]]:
  """Return the runs of the paper's setting."""
  return [run for run in listed() if run[0] != 'I = 128']


def pieces(setting: Setting) -> list[Piece]:
  """Return the runs of the paper's setting, those that show most first."""
  return [
    make_piece(
      setting,
      algorithm,
      options,
      FULL_NETWORK,
      label=label,
      num_examples=FULL_EXAMPLES,
      **FULL_FIELDS,
      seed=seed,
    )
    for seed in FULL_SEEDS
    for label, algorithm, options in sorted(
      full_runs(), key=lambda run: FULL_ORDER.index(run[0])
    )
  ]
