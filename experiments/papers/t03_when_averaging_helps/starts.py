"""LeNet-5 on MNIST, from one start and from different ones."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np
import optax

from experiments.papers.target import Claim, Setting, verdict
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation, input_pipeline
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.models.classification import classifier

EXAMPLES, TEST_EXAMPLES = 20000, 2000
TRAINING = {'num_replicas': 4, 'batch_size': 32, 'steps': 150, 'period': 10}
RATE, MOMENTUM = 0.02, 0.9
EVERY = 25
STARTS = ('same', 'different')
SCHEMES = ('once', 'every 10')


def measure(setting: Setting) -> dict[str, Any]:
  """Test accuracy of the mean model, and of the replicas before the last mean.

  The averages are all that differs: what both schemes put out is the replicas.
  """
  dataset = load_dataset('mnist', setting.data_dir)
  train = {k: v[:EXAMPLES] for k, v in dataset.train.items()}
  test = {k: v[:TEST_EXAMPLES] for k, v in dataset.test.items()}
  statistics = augmentation.channel_statistics(train['image'])

  def normalized(batch: Any) -> Any:
    image = augmentation.normalize(batch['image'], *statistics)
    return {**batch, 'image': image}

  task = classifier(models.LeNet5(dataset.num_classes))
  n, steps = TRAINING['num_replicas'], TRAINING['steps']
  mesh = pr.engine.ReplicaMesh(n, 1)
  sampler = input_pipeline.shared(EXAMPLES, n, TRAINING['batch_size'], seed=0)
  data = mesh.replicate(train)
  held_out = pr.engine.shard_examples(mesh, test, 500)
  keys = jax.random.split(jax.random.key(0, impl='threefry2x32'), n)
  example = normalized({'image': jnp.asarray(train['image'][:1])})
  points = jax.vmap(lambda key: task.init(key, example)[0])(keys)
  tx = optax.sgd(RATE, MOMENTUM)
  algorithms = {
    'once': pr.k_avg(tx, period=steps),
    'every 10': pr.k_avg(tx, period=TRAINING['period']),
  }

  def score(params: Any, model_state: Any, batch: Any) -> Any:
    return task.eval_fn(params, model_state, normalized(batch))

  evaluate = pr.engine.make_evaluate(mesh, algorithms['once'], score)
  evaluate_replicas = pr.engine.make_evaluate_replicas(
    mesh, algorithms['once'], score
  )
  runs = {}
  for scheme, algorithm in algorithms.items():
    train_steps = pr.engine.make_resident_train_steps(
      mesh,
      algorithm,
      task.loss_fn,
      pr.engine.make_batch_fn(
        mesh, sampler, lambda key, batch: normalized(batch)
      ),
    )
    for start in STARTS:
      begin = points
      if start == 'same':
        begin = jax.tree.map(lambda x: jnp.broadcast_to(x[0], x.shape), points)
      state = pr.engine.create_train_state(
        mesh, algorithm, begin, {}, per_replica=True
      )
      curve = []
      for done in range(EVERY, steps + 1, EVERY):
        state, _ = train_steps(state, data, EVERY - 1)
        if done == steps:
          own = evaluate_replicas(state, held_out)['accuracy']
        state, _ = train_steps(state, data, 1)
        curve.append(evaluate(state, held_out)['accuracy'])
      runs[f'{scheme}, {start}'] = {
        'mean': curve,
        'replicas_before': own.tolist(),
      }
  return {
    'steps': list(range(EVERY, steps + 1, EVERY)),
    'runs': runs,
  }


def claims(found: Mapping[str, Any]) -> list[Claim]:
  """One average at the end fails from different starts alone."""
  final = {name: run['mean'][-1] for name, run in found['runs'].items()}
  own = {
    name: float(np.mean(run['replicas_before']))
    for name, run in found['runs'].items()
  }

  def shown(start: str) -> str:
    return '; '.join(
      f'{scheme}: {final[f"{scheme}, {start}"]:.1%} (a replica just before '
      f'{own[f"{scheme}, {start}"]:.1%})'
      for scheme in SCHEMES
    )

  setting = (
    f'LeNet-5, {TRAINING["num_replicas"]} replicas x {TRAINING["batch_size"]}, '
    f'{TRAINING["steps"]} steps, learning rate {RATE}, momentum '
    f'{MOMENTUM} for both; first {EXAMPLES} training and {TEST_EXAMPLES} '
    'test images, one seed'
  )
  gap = final['every 10, different'] - final['once, different']
  lost = own['once, different'] - final['once, different']
  same = final['every 10, same'] - final['once, same']
  return [
    Claim(
      'LeNet-5 on MNIST, every 10 steps against once: one average at the end '
      'is much worse [S; from which starts is not said]. From different starts',
      f'test accuracy {shown("different")}',
      verdict(gap >= 0.3 and lost >= 0.3, partly=gap >= 0.05),
      'rule: one average is at least 30 points below averages every 10, and '
      f'below its own replicas; partly if 5 below. {setting}',
    ),
    Claim(
      'the same from one start: one average at the end does not fail [derived: '
      'a trial with an MLP]',
      f'test accuracy {shown("same")}',
      verdict(same <= 0.03, partly=same <= 0.1),
      'rule: at most 3 points below averages every 10; partly if 10',
    ),
  ]


def draw(found: Mapping[str, Any], ax: Axes) -> None:
  """Test error of the mean model along the runs."""
  looks = {'once': 'one_shot_averaging', 'every 10': 'k_avg'}
  for scheme in SCHEMES:
    style = styles.method(looks[scheme])
    for start in STARTS:
      run = found['runs'][f'{scheme}, {start}']
      same = start == STARTS[0]
      drawing.curve(
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
  )
  ax.legend(loc='upper right', bbox_to_anchor=(1, 0.9))
