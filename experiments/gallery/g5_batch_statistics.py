"""G5: batch statistics at an average: kept, averaged or re-estimated."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.gallery import comparing
from experiments.gallery.entry import Entry
from experiments.papers import images
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data import samplers, values
from prsgd_jax.engine import batch_statistics
from prsgd_jax.engine.run_state import State
from prsgd_jax.engine.trainer import Trainer
from prsgd_jax.models.batch_norm import BatchNorm
from prsgd_jax.models.classification import Task, classifier

SEEDS = (0, 1, 2, 3)
PERIODS = (1, 4, 16, 64, 256)
ALPHAS = (100.0, 1.0)
NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 32, (64,) * 4
RATE, DROP, MOMENTUM = 0.1, 0.1, 0.9
# Steps before the drop, and after it. Every period divides them, so that both
# observations follow an average.
NUM_STEPS = 1024
# The setting of a sentence, in which re-estimation harms.
FEW = 4
POINTS = ('before the drop', 'after the drop')
OWN, AVERAGED, ESTIMATED = TREATMENTS = ('own', 'averaged', 're-estimated')
LOOKS = {
  OWN: styles.Style(styles.HUES['red'], 's'),
  AVERAGED: styles.Style(styles.HUES['blue'], 'o'),
  ESTIMATED: styles.Style(styles.HUES['green'], '^', '--'),
}
LABELS = {
  OWN: 'statistics of one replica (mean over the replicas)',
  AVERAGED: 'averaged statistics',
  ESTIMATED: 're-estimated statistics',
}


class Network(nn.Module):
  """Dense layers with batch normalization and ReLU between them."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Map [batch, pixels] to logits [batch, classes]."""
    for width in HIDDEN:
      # No bias, because the normalization adds one.
      x = nn.Dense(width, use_bias=False)(x)
      x = nn.relu(BatchNorm(use_running_average=not train)(x))
    return nn.Dense(images.CLASSES)(x)


def measure(setting: Setting) -> Outcome:
  """Train with every period and likeness of the data; evaluate twice.

  A run serves all treatments, because training does not read the statistics.
  """
  train, unseen = images.load(setting, 'fashion_mnist')
  test = unseen.rows(slice(None))
  task = classifier(Network())
  found = np.zeros(
    (len(TREATMENTS), len(ALPHAS), len(PERIODS), len(POINTS), len(SEEDS))
  )
  for j, period in enumerate(PERIODS):
    trainer = _trainer(task, period)
    for i, alpha in enumerate(ALPHAS):
      for k, seed in enumerate(SEEDS):
        data = _data(train, alpha, seed)
        state = _start(trainer, task, train, seed)
        for point in range(len(POINTS)):
          state, _ = trainer.run(state, data, NUM_STEPS)
          found[:, i, j, point, k] = errors(trainer, state, data, test)
  measured = {
    'errors': dict(zip(TREATMENTS, found.tolist(), strict=True)),
    'alphas': ALPHAS,
    'periods': PERIODS,
  }
  return Outcome((), measured, SEEDS)


def _trainer(task: Task, period: int) -> Trainer:
  """Return local SGD whose replicas keep their own statistics."""
  rate = optax.piecewise_constant_schedule(RATE, {NUM_STEPS: DROP})
  return pr.trainer(
    pr.k_avg(optax.sgd(rate, momentum=MOMENTUM), period=period),
    task.loss_fn,
    num_replicas=NUM_REPLICAS,
    eval_fn=task.eval_fn,
    num_devices=1,
  )


def _data(train: images.Examples, alpha: float, seed: int) -> values.Resident:
  """Return batches of each replica's part of the examples."""
  shards = samplers.dirichlet_shards(
    np.asarray(train.label), NUM_REPLICAS, alpha=alpha, seed=seed
  )
  # Rows are data, so that one compiled program serves all seeds and alphas.
  size = min(map(len, shards))
  rows = np.stack([shard[:size] for shard in shards])
  return values.drawn((train, jnp.asarray(rows, jnp.int32)), draw_batch)


def draw_batch(
  data: Any, step: jax.Array, replica: jax.Array, key: jax.Array
) -> dict[str, jax.Array]:
  """Draw a batch of a replica's part with replacement."""
  del step
  examples, rows = data
  at = jax.random.randint(key, (BATCH_SIZE,), 0, rows.shape[1])
  return examples.rows(rows[replica, at])


def _start(
  trainer: Trainer, task: Task, train: images.Examples, seed: int
) -> State:
  key = jax.random.key(seed, impl='threefry2x32')
  return trainer.init(*task.init(key, train.rows(slice(1))), seed=seed)


def errors(
  trainer: Trainer,
  state: State,
  data: values.Resident,
  test: dict[str, jax.Array],
) -> list[float]:
  """Return the test error of each treatment just after an average, in %.

  Args:
    trainer: its replicas keep their own statistics.
    state: all replicas have the averaged parameters.
    data: batches for the re-estimation.
    test: the test examples.

  Returns:
    The errors of `TREATMENTS`. Own: mean error of the averaged parameters with
    the statistics of each replica. Averaged: with the mean of the statistics;
    averages that include them leave this mean, because their update is linear
    and training does not read them. Re-estimated: as
    `evaluate(..., reestimate=data)`.
  """
  replicas = trainer.evaluate_replicas(state, test)
  averaged = trainer.evaluate(state, test)
  estimated = trainer.evaluate(state, test, reestimate=data)
  accuracies = [replicas['accuracy'].mean()]
  accuracies += [found['accuracy'] for found in (averaged, estimated)]
  return drawing.error_percent(accuracies).tolist()


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Compare the treatments by period, likeness of the data and rate."""
  before, after = range(len(POINTS))
  short, long = data['periods'][0], data['periods'][-1]
  alike, unlike = data['alphas']
  widest, point = largest_change(data, alike)

  def beyond(one: str, alpha: float, period: int, point: int) -> str:
    ends = (at(data, name, alpha, period)[point] for name in (one, AVERAGED))
    return str(comparing.difference(*ends))

  return (
    f'With like data (alpha = {alike:g}) and I = {long}, the statistics of one '
    f'replica add {beyond(OWN, alike, long, before)} to the error with '
    f'averaged ones before the drop of the rate, and '
    f'{beyond(OWN, alike, long, after)} after it.',
    f'With unlike data (alpha = {unlike:g}), they add '
    f'{beyond(OWN, unlike, short, after)} at I = {short} and '
    f'{beyond(OWN, unlike, long, after)} at I = {long}, both after the drop.',
    'Compared with averaged statistics, re-estimated ones change the error '
    f'with like data most at I = {widest} {POINTS[point]}, by '
    f'{beyond(ESTIMATED, alike, widest, point)}; with unlike data before the '
    f'drop, they change it by {beyond(ESTIMATED, unlike, FEW, before)} at I = '
    f'{FEW} and by {beyond(ESTIMATED, unlike, long, before)} at I = {long}, '
    f'where it is {beyond(ESTIMATED, unlike, long, after)} after the drop.',
  )


def at(
  data: Mapping[str, Any], name: str, alpha: float, period: int
) -> np.ndarray:
  """Return the errors `[points, seeds]` of a treatment."""
  own = data['errors'][name][data['alphas'].index(alpha)]
  return np.array(own[data['periods'].index(period)])


def largest_change(data: Mapping[str, Any], alpha: float) -> tuple[int, int]:
  """Return the period and the point at which re-estimation changes most.

  There the absolute mean change over the seeds is largest.
  """
  place = data['alphas'].index(alpha)
  one, other = (
    np.array(data['errors'][name][place]) for name in (ESTIMATED, AVERAGED)
  )
  changes = np.abs((one - other).mean(axis=-1))
  period, point = np.unravel_index(changes.argmax(), changes.shape)
  return data['periods'][period], int(point)


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  widths = '-'.join(map(str, HIDDEN))
  alphas = ', '.join(f'{alpha:g}' for alpha in data['alphas'])
  return (
    f'MLP 196-{widths}-{images.CLASSES} with batch normalization on '
    f'Fashion-MNIST at 14 x 14 pixels, local SGD on {NUM_REPLICAS} replicas '
    f'with batches of {BATCH_SIZE}, momentum {MOMENTUM}. The rate is {RATE} '
    f'for {NUM_STEPS} steps and {DROP * RATE:g} for {NUM_STEPS} more; '
    'evaluation is at the end of each part, just after an average. A seed also '
    'draws the classes of each replica (Dirichlet, alpha = '
    f'{alphas}). One replica: the averaged parameters with the moving averages '
    'of one replica; mean error over the replicas. Averaged: with their mean. '
    'An average that includes the statistics leaves this mean, because their '
    'update is linear and training does not read them. Re-estimated: moving '
    f'averages over {batch_statistics.NUM_BATCHES} training batches, each with '
    f'examples of all replicas; averaged ones average {NUM_REPLICAS} times as '
    'many examples.'
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the error by period, a panel for each alpha and part of the run."""
  figure.set_size_inches(drawing.WIDTH, 6)
  alphas, periods = data['alphas'], data['periods']
  panels = figure.subplots(len(alphas), len(POINTS), sharex=True, sharey='row')
  kinds = ('like data', 'unlike data')
  for row, kind, alpha in zip(panels, kinds, alphas, strict=True):
    for i, (axis, point) in enumerate(zip(row, POINTS, strict=True)):
      for name in TREATMENTS:
        ends = [at(data, name, alpha, period)[i] for period in periods]
        drawing.seeds(
          axis, periods, np.transpose(ends), LOOKS[name], label=LABELS[name]
        )
      axis.set(xscale='log', title=f'{kind} (alpha = {alpha:g}), {point}')
      axis.set_xticks(periods, [str(period) for period in periods])
      axis.minorticks_off()
    row[0].set_ylabel('test error of the average, %')
  for axis in panels[-1]:
    axis.set_xlabel('I, steps between averages')
  drawing.legend_below(figure)


ENTRY = Entry(
  target=Target(
    name='g5_batch_statistics',
    title='Batch statistics at an average: keep, average or re-estimate?',
    paper='Ioffe, Szegedy 2015 (arXiv 1502.03167); Hsieh, Phanishayee, Mutlu, '
    'Gibbons 2020 (arXiv 1910.00189)',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)
