"""The runs of the headline figure: curves, lengths, schedules and networks.

The paper trains ResNet-20 for 300 epochs (recalled, not verified). Run A keeps
its schedule and shrinks the network and the images, because a shorter schedule
would change the picture. Run B keeps network and images and shortens the
schedule.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.papers import target
from experiments.papers.headline import averages, small_images
from experiments.papers.pieces import Piece
from experiments.papers.target import Setting
from experiments.running.execution.parts import Parts
import prsgd_jax as pr
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.ledger.network import ETHERNET, Link

# Steps of an epoch: 50,000 images, 8 replicas, batches of 32, rounded down.
EPOCH = 195
EPOCHS = 300  # of the paper
NUM_EXAMPLES = 50_000
PERIODS = (4, 8, 16, 32)
SSGD, ONE_SHOT = 'SSGD', 'one average at the end'
AVERAGED = 'I = 32, averaged buffers'

# Curve -> algorithm and options, in the order that shows most first.
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
  SSGD: ('ssgd', {}),
  'I = 32': ('pr_sgd', {'period': 32}),
  'I = 4': ('pr_sgd', {'period': 4}),
  ONE_SHOT: ('one_shot_averaging', {}),
  'I = 16': ('pr_sgd', {'period': 16}),
  'I = 8': ('pr_sgd', {'period': 8}),
  AVERAGED: ('pr_sgd', {'period': 32, 'buffers': 'average'}),
}
MODERATE = tuple(f'I = {p}' for p in PERIODS)
# From the most averages to the fewest, as figures and tables show them.
SHOWN = (SSGD, *MODERATE, AVERAGED, ONE_SHOT)
# Their rounds send only the parameters, as those that hosts have measured.
TIMED = (SSGD, *MODERATE, ONE_SHOT)

COMMON: dict[str, Any] = {
  'dataset': 'cifar10',
  'model': 'resnet20',
  'num_replicas': 8,
  'batch_size': 32,
  'momentum': 0.9,
  'weight_decay': 1e-4,
  'learning_rate': 0.1,
  'augment': True,
}
# ResNet-8: one block in each of the three stages, 16 to 64 channels.
SMALL: dict[str, Any] = {
  **COMMON,
  'model_options': {'blocks_per_stage': '1'},
  'log_every': EPOCH // 5,
  'eval_every': 5 * EPOCH,
  'checkpoint_every': 5 * EPOCH,
}
LARGE: dict[str, Any] = {
  **COMMON,
  'log_every': EPOCH // 15,  # because a signal waits for as many steps
  'eval_every': 2 * EPOCH,
  'checkpoint_every': EPOCH,
}

# A machine with one core for each replica of A, on 1 Gb/s Ethernet. ResNet-8
# takes about 10 ms for 32 images of 16 x 16 pixels on one core.
SLOW = Link(latency=50e-6, bandwidth=0.125e9)
SMALL_NETWORK = pr.ledger.Network(
  links={'global': SLOW, 'group': SLOW, 'neighbor': SLOW}, step_time=10e-3
)
# An accelerator for each replica of B, on 10 Gb/s: 15 ms for ResNet-20.
LARGE_NETWORK = pr.ledger.Network(
  links={'global': ETHERNET, 'group': ETHERNET, 'neighbor': ETHERNET},
  step_time=15e-3,
)

# Of scale 'test'.
TINY: dict[str, Any] = {
  'dataset': 'digits',
  'model': 'mlp',
  'model_options': None,
  'num_replicas': 2,
  'batch_size': 2,
  'num_steps': 4,
  'log_every': 1,
  'eval_every': 2,
  'checkpoint_every': 2,
}


def title(label: str) -> str:
  """Return the name of a curve in a legend or a table.

  Example:
    >>> title('I = 4'), title('SSGD')
    ('PR-SGD, I = 4', 'SSGD')
  """
  return label if label in (SSGD, ONE_SHOT) else f'PR-SGD, {label}'


def small(
  setting: Setting,
  labels: Sequence[str],
  seeds: Sequence[int],
  *,
  epochs: int = EPOCHS,
  priorities: Mapping[tuple[str, int], int] | None = None,
) -> list[Piece]:
  """Return the runs of ResNet-8 on images of 16 x 16 pixels.

  Args:
    setting: its workdir holds the runs; scale 'test' makes tiny runs.
    labels: curves, keys of `CURVES`.
    seeds: seeds of each curve.
    epochs: length of a run; the rate drops at 1/2 and 3/4 of it. Default: the
      paper's 300.
    priorities: (curve, seed) -> priority. Default: 0 for all.
  """
  return [
    _piece(
      setting,
      label,
      SMALL_NETWORK,
      {**SMALL, **_schedule(epochs), 'seed': seed},
      (priorities or {}).get((label, seed), 0),
      small_images.load,
      _adapt_small,
    )
    for seed in seeds
    for label in labels
  ]


def large(
  setting: Setting,
  labels: Sequence[str],
  seeds: Sequence[int],
  *,
  epochs: int,
  priority: int,
) -> list[Piece]:
  """Return the runs of ResNet-20 on images of 32 x 32 pixels.

  Args:
    setting: its workdir holds the runs; scale 'test' makes tiny runs.
    labels: curves, keys of `CURVES`.
    seeds: seeds of each curve.
    epochs: length of a run; the rate drops at 1/2 and 3/4 of it.
    priority: priority of all runs.
  """
  return [
    _piece(
      setting,
      label,
      LARGE_NETWORK,
      {**LARGE, **_schedule(epochs), 'seed': seed},
      priority,
      _load_large,
      averages.observed,
    )
    for seed in seeds
    for label in labels
  ]


def _schedule(epochs: int) -> dict[str, Any]:
  """Return the length, and the drops of the rate at 1/2 and 3/4 of it."""
  return {
    'num_steps': EPOCH * epochs,
    'learning_rate_drops': (epochs / 2, 3 * epochs / 4),
  }


def _piece(
  setting: Setting,
  label: str,
  network: pr.ledger.Network,
  fields: dict[str, Any],
  priority: int,
  load: Any,
  adapt: Any,
) -> Piece:
  algorithm, options = CURVES[label]
  if setting.scale == 'test':
    fields = {**fields, **TINY}
    load, adapt = _load_tiny, averages.observed
  else:
    options = {**options, 'batch_stats': 'reestimate'}
  made = target.make_piece(
    setting,
    algorithm,
    options,
    network,
    label=label,
    num_examples=NUM_EXAMPLES,
    priority=priority,
    **fields,
  )
  # In a directory of the target, because its workdir is named for it.
  kept = setting.results and (
    setting.results / setting.workdir.name / f'{made.workdir.name}.json'
  )
  return made._replace(load=load, adapt=adapt, kept=kept)


def _load_large(data_dir: str | None) -> Dataset:
  return target.load_dataset('cifar10', data_dir)


def _load_tiny(data_dir: str | None) -> Dataset:
  return target.load_dataset('digits', data_dir)


def _adapt_small(parts: Parts, dataset: Dataset) -> Parts:
  cropped = small_images.crop_in_proportion(parts, dataset)
  return averages.observed(cropped, dataset)
