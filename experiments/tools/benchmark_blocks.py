"""Compare the ways to compute the replicas of a device, for each model.

  python experiments/tools/benchmark_blocks.py --models=mlp,lenet --layouts=8x1

A layout NxD has N replicas on D devices. All ways take turns in one process, on
identical batches of noise. The table has the medians of the milliseconds per
step, and the seconds of the first step, most of which is compilation.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Callable, Mapping, Sequence
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.flags import cli
from experiments.running.records import records
from experiments.tools import tables
from experiments.tools.tables import Column
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.engine.block_mapping import BLOCKS
from prsgd_jax.models.classification import Task, classifier
from prsgd_jax.models.language_modeling import language_model

FLAGS = flags.FLAGS
BATCH_SIZE = 32
EXAMPLES = 512
VOCABULARY, LENGTH = 64, 64


class Model(NamedTuple):
  """A task, the shape of its images (None for text), and steps per run."""

  task: Task
  shape: tuple[int, ...] | None
  steps: int


MODELS: dict[str, Callable[[], Model]] = {
  'mlp': lambda: Model(classifier(models.MLP(10)), (8, 8, 1), 256),
  'mlp_wide': lambda: Model(
    classifier(models.MLP(10, hidden=(512, 512))), (28, 28, 1), 8
  ),
  'lstm': lambda: Model(classifier(models.LSTMClassifier(10)), (28, 28, 1), 16),
  'transformer': lambda: Model(
    language_model(models.Transformer(VOCABULARY, LENGTH)), None, 4
  ),
  'lenet': lambda: Model(classifier(models.LeNet5(10)), (28, 28, 1), 16),
  'resnet8': lambda: Model(
    classifier(models.ResNet20(10, blocks_per_stage=1)), (32, 32, 3), 2
  ),
  'resnet20': lambda: Model(classifier(models.ResNet20(10)), (32, 32, 3), 1),
}

flags.DEFINE_list(
  'models', list(MODELS), f'Models to measure: {", ".join(MODELS)}.'
)
flags.DEFINE_list(
  'layouts',
  ['2x1', '4x1', '8x1', '8x2'],
  'Layouts NxD to measure: N replicas on D devices.',
)
flags.DEFINE_list(
  'blocks', list(BLOCKS), f'Ways to measure: {", ".join(BLOCKS)}.'
)
flags.DEFINE_integer('repeats', 11, 'Number of measurements of each way.')


class Run(NamedTuple):
  """A compiled way; each call of `step` runs the steps of one measurement."""

  step: Callable[[], Any]
  seconds_to_first_step: float
  chosen: str


def make_run(
  model: Model, num_replicas: int, num_devices: int, block: str | None
) -> Run:
  """Return one way to run a model, compiled.

  Args:
    model: the model and its steps per run.
    num_replicas: N.
    num_devices: D.
    block: the way, None for the one that the engine chooses.
  """
  arrays = _noise(model.shape)
  trainer = pr.trainer(
    pr.pr_sgd(optax.sgd(0.01, momentum=0.9), period=4),
    model.task.loss_fn,
    num_replicas=num_replicas,
    num_devices=num_devices,
    block=block,
  )
  example = jax.tree.map(lambda x: jnp.asarray(x[:BATCH_SIZE]), arrays)
  params, model_state = jax.jit(model.task.init)(jax.random.key(0), example)
  state = trainer.init(params, model_state)
  data = pr.shared(arrays, batch_size=BATCH_SIZE)

  def step() -> Any:
    nonlocal state
    state, metrics = trainer.run(state, data, model.steps)
    return jax.block_until_ready(metrics)

  begun = time.perf_counter()
  step()
  seconds = time.perf_counter() - begun
  return Run(step, seconds, trainer.block(params, model_state, example))


def _noise(shape: tuple[int, ...] | None) -> dict[str, np.ndarray]:
  """Return random images with labels, or random text."""
  rng = np.random.default_rng(0)
  if shape is None:
    text = rng.integers(VOCABULARY, size=(EXAMPLES, LENGTH + 1))
    return {'text': text.astype(np.int32)}
  return {
    'image': rng.normal(size=(EXAMPLES, *shape)).astype(np.float32),
    'label': rng.integers(10, size=EXAMPLES).astype(np.int32),
  }


def measure(
  runs: Mapping[str, Run], steps: int, repeats: int
) -> dict[str, float]:
  """Return the median milliseconds per step of runs that take turns.

  Args:
    runs: the ways to compare.
    steps: number of steps in one measurement.
    repeats: number of measurements of each way.
  """
  found: dict[str, list[float]] = {name: [] for name in runs}
  for i in range(repeats):
    # The order alternates, because a run may slow down the next one.
    for name in sorted(runs, reverse=bool(i % 2)):
      begun = time.perf_counter()
      runs[name].step()
      found[name].append(1000 * (time.perf_counter() - begun) / steps)
  return {name: statistics.median(times) for name, times in found.items()}


def _case(name: str, layout: str) -> dict[str, Any]:
  """Measure a model on a layout, and return its row of the table."""
  model = MODELS[name]()
  replicas, devices = _parse(layout)
  runs = {
    block: make_run(model, replicas, devices, block) for block in FLAGS.blocks
  }
  chosen = make_run(model._replace(steps=0), replicas, devices, None).chosen
  times = measure(runs, model.steps, FLAGS.repeats)
  return {
    'model': name,
    'layout': layout,
    'default': chosen,
    **{
      block: f'{times[block]:.3g} ({run.seconds_to_first_step:.1f})'
      for block, run in runs.items()
    },
  }


def _parse(layout: str) -> tuple[int, int]:
  """Return (N, D) of a layout such as 8x2.

  Raises:
    ValueError: if it is not two numbers.
  """
  try:
    replicas, devices = map(int, layout.split('x'))
  except ValueError:
    raise ValueError(
      f'--layouts must be NxD, such as 8x2, got {layout!r}'
    ) from None
  return replicas, devices


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
  for name in given:
    if name not in known:
      raise ValueError(f'--{what}: unknown {name!r}; use {", ".join(known)}')


COLUMNS = (
  Column('model'),
  Column('layout'),
  *(Column(b, f'{b}, ms (first s)', is_number=True) for b in BLOCKS),
  Column('default'),
)


def main() -> None:
  with cli.one_line_errors(ValueError):
    _check('models', FLAGS.models, list(MODELS))
    _check('blocks', FLAGS.blocks, BLOCKS)
    layouts = [_parse(layout) for layout in FLAGS.layouts]
    cli.make_fake_devices(max(devices for _, devices in layouts))
    rows = []
    for name in FLAGS.models:
      for layout in FLAGS.layouts:
        print(f'{name} {layout} ...', flush=True)  # because a case takes long
        rows.append(_case(name, layout))
  print(f'\n{tables.markdown(rows, COLUMNS)}\n{records.machine()}')


if __name__ == '__main__':
  cli.run(main)
