"""LeNet-5 on MNIST, from one start and from different ones."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import All, at_least, every, holds, some
from experiments.papers.quantities import Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.target import Setting
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.models.classification import classifier

EXAMPLES, TEST_EXAMPLES = 20000, 2000
TRAINING = {'num_replicas': 4, 'batch_size': 32, 'steps': 100, 'period': 10}
STARTS_SEEDS = (0, 1, 2)
RATE, MOMENTUM = 0.02, 0.9
EVERY = 25
STARTS = ('same', 'different')
SCHEMES = ('once', 'every 10')


def measure(setting: Setting) -> dict[str, Any]:
  """Measure the mean model, and the replicas just before the last average.

  The schemes differ in their averages only; both output the replicas.
  """
  dataset = load_dataset('mnist', setting.data_dir)
  train = {k: v[:EXAMPLES] for k, v in dataset.train.items()}
  test = {k: v[:TEST_EXAMPLES] for k, v in dataset.test.items()}
  statistics = augmentation.channel_statistics(train['image'])

  def normalized(batch: Any) -> Any:
    image = augmentation.normalize(batch['image'], *statistics)
    return {**batch, 'image': image}

  def score(params: Any, model_state: Any, batch: Any) -> Any:
    return task.eval_fn(params, model_state, normalized(batch))

  task = classifier(models.LeNet5(dataset.num_classes))
  n, steps = TRAINING['num_replicas'], TRAINING['steps']
  data = pr.shared(
    train,
    batch_size=TRAINING['batch_size'],
    transform=lambda key, batch: normalized(batch),
  )
  example = normalized({'image': jnp.asarray(train['image'][:1])})

  def points(seed: int) -> Any:
    keys = jax.random.split(jax.random.key(seed, impl='threefry2x32'), n)
    return jax.vmap(lambda key: task.init(key, example)[0])(keys)

  runs: dict[str, dict[str, Any]] = {}
  for scheme, period in zip(SCHEMES, (steps, TRAINING['period']), strict=True):
    trainer = pr.trainer(
      pr.k_avg(optax.sgd(RATE, MOMENTUM), period=period),
      task.loss_fn,
      num_replicas=n,
      eval_fn=score,
      num_devices=1,
    )
    for start in STARTS:
      found = [
        _run(trainer, _begin(points(seed), start), seed, data, test)
        for seed in STARTS_SEEDS
      ]
      runs[f'{scheme}, {start}'] = {
        'mean': [curve for curve, _ in found],
        'replicas_before': [float(own) for _, own in found],
      }
  return {
    'steps': list(range(EVERY, steps + 1, EVERY)),
    'runs': runs,
  }


def _begin(points: Any, start: str) -> Any:
  if start != 'same':
    return points
  return jax.tree.map(lambda x: jnp.broadcast_to(x[0], x.shape), points)


def _run(
  trainer: Any, begin: Any, seed: int, data: Any, test: Any
) -> tuple[list[float], float]:
  """Return the accuracy of the mean, and of a replica before the last step."""
  state = trainer.init(begin, {}, per_replica=True, seed=seed)
  curve = []
  for done in range(EVERY, TRAINING['steps'] + 1, EVERY):
    state, _ = trainer.run(state, data, EVERY - 1)
    if done == TRAINING['steps']:
      own = trainer.evaluate_replicas(state, test)['accuracy']
    state, _ = trainer.run(state, data, 1)
    curve.append(trainer.evaluate(state, test)['accuracy'])
  return curve, np.mean(own)


def claim(found: Mapping[str, Any]) -> Claim:
  """Judge one average at the end, from one start and from different ones."""
  final = {
    n: 100 * np.array(run['mean'])[:, -1] for n, run in found['runs'].items()
  }
  own = {
    n: 100 * np.array(run['replicas_before'])
    for n, run in found['runs'].items()
  }
  below_often = 'accuracy lost against averages every 10 steps'
  below_own = 'accuracy lost against its own replicas'
  once, often = SCHEMES
  much = All(
    (
      at_least(below_often, 30, seeds='each'),
      at_least(below_own, 30, seeds='each'),
    )
  )

  def by_start(values: Mapping[str, np.ndarray]) -> Quantity:
    return by_case({f'{s} starts': v for s, v in values.items()}, 'points')

  made = Claim(
    text='LeNet-5 on MNIST: one average at the end is much worse than averages '
    'every 10 steps.',
    source=f'{STATED}, which does not say from which starts',
    measured={
      below_often: by_start(
        {s: final[f'{often}, {s}'] - final[f'{once}, {s}'] for s in STARTS}
      ),
      below_own: by_start(
        {s: own[f'{once}, {s}'] - final[f'{once}, {s}'] for s in STARTS}
      ),
      'test accuracy': by_case(final, '%'),
      'test accuracy of a replica just before': by_case(own, '%'),
    },
    rule=Rule(every(much), some(at_least(below_often, 5))),
    setting=f'{TRAINING["num_replicas"]} replicas x '
    f'{TRAINING["batch_size"]}, {TRAINING["steps"]} steps, learning rate '
    f'{RATE}, momentum {MOMENTUM} for both; the first {EXAMPLES} training '
    f'and {TEST_EXAMPLES} test images. Both columns show what one average at '
    'the end loses. With the same starts, all replicas begin at one point.',
  )
  starts = [s for s in STARTS if holds(much, made.measured, f'{s} starts')]
  return made._replace(
    note='One average is much worse from these starts: '
    f'{", ".join(starts) or "none"}.'
  )


def draw(found: Mapping[str, Any], ax: Axes) -> None:
  """Draw the test error of the mean model along the runs."""
  looks = {'once': 'one_shot_averaging', 'every 10': 'k_avg'}
  for scheme in SCHEMES:
    style = styles.method(looks[scheme])
    for start in STARTS:
      run = found['runs'][f'{scheme}, {start}']
      same = start == STARTS[0]
      drawing.seeds(
        ax,
        found['steps'],
        drawing.error_percent(run['mean']),
        style._replace(linestyle='-' if same else '--'),
        label=f'averaged {scheme}, {start} starts',
      )
  drawing.log(ax, 'y')
  ax.set(
    xlabel='steps',
    ylabel='test error of the mean model, %',
    title='LeNet-5, MNIST',
    ylim=(1, 120),
  )
  ax.legend(loc='lower left')
