"""G7: do local steps late in a run improve the generalization?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.gallery import comparing, few_digits
from experiments.gallery.entry import Entry
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data.datasets import load_dataset

SEEDS = tuple(range(8))
NUM_REPLICAS, BATCH_SIZE, NUM_STEPS = 8, 16, 1024
RATES = (0.2, 0.4, 0.8, 1.6, 3.2)
# A smaller batch needs smaller rates. It takes as many epochs.
SMALL_BATCH, SMALL_RATES = 16, (0.1, 0.2, 0.4, 0.8, 1.6)
SMALL_STEPS = NUM_STEPS * NUM_REPLICAS * BATCH_SIZE // SMALL_BATCH
BASE_PERIOD = 4
# The intervals of each method; for QSR, alpha as a multiple of the peak rate.
OPTIONS: dict[str, tuple[float, ...]] = {
  'SSGD': (1,),
  'local SGD': (4, 16, 64),
  'post-local SGD': (4, 16, 64),
  'QSR': (0.5, 1, 2),
}
SMALL = f'SSGD, batch {SMALL_BATCH}'
# Dashes show a curve that is below another one.
LOOKS = {
  'SSGD': styles.method('ssgd'),
  'local SGD': styles.method('k_avg'),
  'post-local SGD': styles.method('post_local_sgd')._replace(linestyle='--'),
  'QSR': styles.Style(styles.HUES['green'], '^', '--'),
  SMALL: styles.Style(styles.OWN_COLOR, 'D', ':'),
}
TITLES = {'drops': 'drops of the rate', 'cosine': 'cosine decay'}
SHOWN = {
  'test_error': 'test error, %',
  'test_loss': 'test loss, nats',
  'gap': 'test - training loss, nats',
  'sharpness': 'sharpness',
}


class Run(NamedTuple):
  """A run without its peak rate.

  Attributes:
    decay: the name of the decay of the rate.
    method: the name of the method.
    factors: [steps], the rate relative to its peak.
    averages: [steps], whether the replicas are averaged after a step.
  """

  decay: str
  method: str
  factors: np.ndarray
  averages: np.ndarray


def step_decay(step: np.ndarray, num_steps: int) -> np.ndarray:
  """Return the rate after drops to 1/10 at 1/2 and 3/4 of the run."""
  done = np.asarray(step) / num_steps
  return 0.1 ** ((done >= 0.5).astype(float) + (done >= 0.75))


def cosine_decay(step: np.ndarray, num_steps: int) -> np.ndarray:
  """Return the rate of half a period of the cosine."""
  return (1 + np.cos(np.pi * np.asarray(step) / num_steps)) / 2


DECAYS = {'drops': step_decay, 'cosine': cosine_decay}


def measure(setting: Setting) -> Outcome:
  """Train by every decay, method, option and rate, with new data each seed."""
  dataset = load_dataset('digits', setting.data_dir)
  large, small = _large_runs(), _small_runs()
  found = []
  for seed in SEEDS:
    own = few_digits.problem(dataset, seed)
    ends = [
      *_ends(own, large, RATES, seed, NUM_REPLICAS, BATCH_SIZE),
      *_ends(own, small, SMALL_RATES, seed, 1, SMALL_BATCH),
    ]
    found.append(ends)
  measured: dict[str, Any] = {decay: {} for decay in DECAYS}
  for run, of_seeds in zip((*large, *small), zip(*found), strict=True):
    of_method = measured[run.decay].setdefault(run.method, {})
    for name in of_seeds[0]:
      of_option = np.stack([ends[name] for ends in of_seeds], axis=-1)
      of_method.setdefault(name, []).append(of_option.tolist())
  data = {
    'measured': measured,  # by decay, method, measure: [options, rates, seeds]
    'options': {**OPTIONS, SMALL: (1,)},
    'rates': {**dict.fromkeys(OPTIONS, RATES), SMALL: SMALL_RATES},
  }
  return Outcome((), data, SEEDS)


def _ends(
  own: few_digits.Problem,
  runs: Sequence[Run],
  rates: Sequence[float],
  seed: int,
  num_replicas: int,
  batch_size: int,
) -> list[dict[str, np.ndarray]]:
  """Return the measures `[rates]` at the end of every run."""
  factors = np.stack([run.factors for run in runs])
  table = jnp.asarray(np.kron(factors, np.reshape(rates, (-1, 1))), jnp.float32)
  averages = jnp.asarray(np.repeat([r.averages for r in runs], len(rates), 0))

  def make(place: jax.Array) -> pr.base.ReplicaTransformation:
    i = place.astype(int)
    # With an average after each step, this is SSGD.
    return pr.k_avg(
      optax.sgd(lambda step: table[i, step]),
      period=lambda step: averages[i, step],
    )

  points = few_digits.train(
    own,
    make,
    len(table),
    seed,
    num_replicas=num_replicas,
    batch_size=batch_size,
    num_steps=table.shape[1],
  )
  found = few_digits.measures(own, points)
  names = found[0]
  values = {name: np.array([ends[name] for ends in found]) for name in names}
  return [
    {name: x.reshape(len(runs), -1)[k] for name, x in values.items()}
    for k in range(len(runs))
  ]


def _large_runs() -> list[Run]:
  """Return the runs with the large batch."""
  steps = np.arange(NUM_STEPS)
  return [
    Run(
      name,
      method,
      decay(steps, NUM_STEPS),
      np.broadcast_to(schedule_of(method, option, decay)(steps), NUM_STEPS),
    )
    for name, decay in DECAYS.items()
    for method, options in OPTIONS.items()
    for option in options
  ]


def _small_runs() -> list[Run]:
  """Return the runs with the small batch, which have one replica."""
  steps = np.arange(SMALL_STEPS)
  always = np.ones(SMALL_STEPS, bool)
  return [
    Run(name, SMALL, decay(steps, SMALL_STEPS), always)
    for name, decay in DECAYS.items()
  ]


def schedule_of(
  method: str, option: float, decay: Callable[[Any, int], Any]
) -> pr.base.Schedule:
  """Return the schedule of the averages of a method with the large batch."""
  match method:
    case 'QSR':
      # Only alpha / rate counts, so that the peak rate can be 1.
      return pr.schedules.qsr(
        lambda step: decay(step, NUM_STEPS),
        alpha=option,
        base_period=BASE_PERIOD,
        num_steps=NUM_STEPS,
      )
    case 'post-local SGD':
      return pr.schedules.post_local(NUM_STEPS // 2, int(option))
    case _:
      return pr.schedules.every(int(option))


class Best(NamedTuple):
  """The setting of a method that has the lowest validation error.

  Attributes:
    option: place of the option.
    rate: place of the rate.
  """

  option: int
  rate: int


def best(data: Mapping[str, Any], decay: str, method: str) -> Best:
  """Choose the option and the rate of a method, not by the test examples."""
  errors = np.array(data['measured'][decay][method]['validation_error'])
  place = comparing.best(errors.reshape(-1, errors.shape[-1]))
  return Best(*map(int, np.unravel_index(place, errors.shape[:2])))


def at_best(
  data: Mapping[str, Any], decay: str, method: str, name: str
) -> np.ndarray:
  """Return a measure `[seeds]` of a method at its best setting."""
  return np.array(data['measured'][decay][method][name])[
    best(data, decay, method)
  ]


def by_rate(
  data: Mapping[str, Any], decay: str, method: str, name: str
) -> np.ndarray:
  """Return a measure `[rates, seeds]` at the best option for each rate."""
  errors = np.array(data['measured'][decay][method]['validation_error'])
  values = np.array(data['measured'][decay][method][name])
  return np.stack(
    [values[comparing.best(errors[:, k]), k] for k in range(errors.shape[1])]
  )


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Compare the methods at their best settings."""

  def error(one: str, other: str, decay: str) -> str:
    ones, others = (
      at_best(data, decay, name, 'test_error') for name in (one, other)
    )
    return str(comparing.difference(ones, others))

  def sharpness(one: str) -> str:
    names = one, ssgd
    ends = (at_best(data, 'cosine', name, 'sharpness') for name in names)
    return str(comparing.ratio(*ends))

  def train_loss(method: str, decay: str) -> float:
    return float(at_best(data, decay, method, 'train_loss').mean())

  ssgd, local, post, qsr = OPTIONS
  large = NUM_REPLICAS * BATCH_SIZE
  return (
    'With drops of the rate, post-local SGD changes the test error of SSGD by '
    f'{error(post, ssgd, "drops")}, and the error of local SGD throughout by '
    f'{error(post, local, "drops")}; its local steps begin at the drop, where '
    f'the rate is low, and end at {train_loss(post, "drops"):.3g} nats of '
    f'training loss, SSGD at {train_loss(ssgd, "drops"):.3g}.',
    'With a cosine decay, QSR changes the test error of SSGD by '
    f'{error(qsr, ssgd, "cosine")}, and the error of local SGD throughout by '
    f'{error(qsr, local, "cosine")}.',
    f'With a cosine decay, QSR ends at {sharpness(qsr)} and local SGD '
    f'throughout at {sharpness(local)} the sharpness of SSGD; batches of '
    f'{SMALL_BATCH} instead of {large} change the test error of SSGD by '
    f'{error(SMALL, ssgd, "cosine")}, where they also train further (to '
    f'{train_loss(SMALL, "cosine"):.2g} nats, not '
    f'{train_loss(ssgd, "cosine"):.2g}), and with drops by '
    f'{error(SMALL, ssgd, "drops")}.',
  )


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  places = {
    f'{method} ({decay})': best(data, decay, method).rate
    for decay, methods in data['measured'].items()
    for method in methods
  }
  return (
    f'MLP 64-{few_digits.HIDDEN}-10 on {few_digits.NUM_TRAIN} of the digits, '
    'shifted at random by up to a pixel; a seed draws them. '
    f'{NUM_REPLICAS} replicas with batches of {BATCH_SIZE} from common data, '
    f'SGD without momentum, {NUM_STEPS} steps, or '
    f'{SMALL_STEPS} with the small batch. Drops: the rate falls to 1/10 after '
    'half and three quarters of the steps. Post-local SGD starts local steps '
    'after half of the steps. Chosen for each method, by the error on '
    f'{few_digits.NUM_VALIDATION} validation examples: the peak rate; the '
    f'interval of local SGD and of post-local SGD among {_listed("local SGD")};'
    f' alpha of QSR among {_listed("QSR")} times the peak rate, with H_base = '
    f'{BASE_PERIOD}. Sharpness: largest eigenvalue of the Hessian of the '
    f'training loss. {_means(data)} '
    f'{comparing.edge_note(places, len(RATES))} {_option_edges(data)}'
  )


def _option_edges(data: Mapping[str, Any]) -> str:
  """Return a remark on the best intervals and alphas at an edge."""
  at_edge = [
    f'{method} ({decay}): {options[place]:g}'
    for decay in data['measured']
    for method, options in data['options'].items()
    if len(options) > 1
    and (place := best(data, decay, method).option) in (0, len(options) - 1)
  ]
  return (
    'Best intervals and alphas at an edge of their options: '
    f'{", ".join(at_edge) or "none"}.'
  )


def _means(data: Mapping[str, Any]) -> str:
  """Return means over the seeds at the best settings, for all methods."""

  def mean(decay: str, method: str, name: str) -> str:
    return f'{at_best(data, decay, method, name).mean():.3g}'

  parts = [
    f'{method} '
    + ' and '.join(
      f'{mean(decay, method, "test_error")}%, '
      f'{mean(decay, method, "train_loss")} ({decay})'
      for decay in data['measured']
    )
    for method in data['options']
  ]
  return f'Means of test error, training loss: {"; ".join(parts)}.'


def _listed(method: str) -> str:
  return ', '.join(f'{option:g}' for option in OPTIONS[method])


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw each measure by rate, a row for each decay."""
  figure.set_size_inches(drawing.WIDTH, 5.5)
  measured = data['measured']
  panels = figure.subplots(len(measured), len(SHOWN), sharex=True)
  ticks = sorted({rate for rates in data['rates'].values() for rate in rates})
  for row, (decay, methods) in zip(panels, measured.items(), strict=True):
    for axis, name in zip(row, SHOWN, strict=True):
      for method in methods:
        values = by_rate(data, decay, method, name)
        rates = data['rates'][method]
        drawing.seeds(axis, rates, values.T, LOOKS[method], label=method)
      axis.set(xscale='log')
      axis.set_xticks(ticks, [f'{rate:g}' for rate in ticks])
      axis.xaxis.minorticks_off()
      if name != 'gap':  # because a gap may be negative
        drawing.log(axis, 'y')
    row[0].set_ylabel(TITLES[decay])
  for axis, title in zip(panels[0], SHOWN.values(), strict=True):
    axis.set_title(title)
  for axis in panels[-1]:
    axis.set_xlabel('peak rate')
  drawing.legend_below(figure)


ENTRY = Entry(
  target=Target(
    name='g7_generalization',
    title='Local steps late in a run: do they generalize better?',
    paper='Lin, Stich, Patel, Jaggi 2020 (arXiv 1808.07217); Gu, Lyu, Arora, '
    'Zhang, Huang 2024 (arXiv 2310.14423)',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)
