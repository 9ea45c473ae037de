"""Compare the speed of the engine with hand-written training loops.

  python experiments/benchmark.py

Both hand-written loops are minimal PR-SGD: momentum SGD and a conditional pmean
in a pmap, with one replica per device and identical batches. One scans over
steps, one dispatches each step. All loops take turns in one process.

A case of streamed data compares the engine with itself: `pr.pipeline`, whose
images are decoded during the run (ResNet-20) or read from arrays (MLP), with
data that stays on the devices. Its ratio divides streamed by resident steps.

The ratio divides the median steps per second of the engine by the faster
hand-written loop; above 1, the engine is faster. Memory is the size that the
compiled program requires on one device.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Callable, Mapping
import functools
import resource
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.flags import cli
from experiments.running.records import records, writing
from experiments.tools import tables
from experiments.tools.png_examples import PngExamples
from experiments.tools.tables import Column
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.values import Resident
from prsgd_jax.engine.trainer import Trainer
from prsgd_jax.models.classification import Task, classifier

FLAGS = flags.FLAGS

flags.DEFINE_list(
  'cases',
  ['mlp2', 'mlp8', 'resnet2', 'mlp2_streamed', 'resnet2_streamed'],
  'Cases to measure: mlp2 and mlp8 (an MLP on 2 or 8 devices), resnet2 '
  '(ResNet-20 on 2 devices), mlp2_streamed and resnet2_streamed (streamed '
  'against resident data).',
)
flags.adopt_module_key_flags(cli)
flags.DEFINE_string(
  'json', None, 'JSON file to write the numbers to. Default: none.'
)

PERIOD = 4
STREAMED = '_streamed'


class Case(NamedTuple):
  """A model, its data, and the length of one measurement."""

  model: nn.Module
  data: dict[str, np.ndarray]
  num_devices: int
  batch_size: int
  steps_per_dispatch: int
  dispatches: int
  repeats: int


class Loop(NamedTuple):
  """A compiled loop; each call of `run` is one dispatch and keeps the state."""

  run: Callable[[], Any]
  seconds_to_first_step: float
  bytes_per_device: int


def make_case(name: str, data_dir: str | None) -> Case:
  """Return a case by name; ResNet-20 gets noise images in CIFAR's shape.

  Raises:
    ValueError: if no case has this name.
  """
  if name == f'resnet2{STREAMED}':
    return make_case('resnet2', data_dir)._replace(
      steps_per_dispatch=8, dispatches=4
    )
  if name == f'mlp2{STREAMED}':
    return make_case('mlp2', data_dir)
  if name == 'resnet2':
    rng = np.random.default_rng(0)
    data: dict[str, np.ndarray] = {
      'image': rng.integers(256, size=(2048, 32, 32, 3), dtype=np.uint8),
      'label': rng.integers(10, size=2048).astype(np.int32),
    }
    return Case(models.ResNet20(10), data, 2, 32, 2, 1, 5)
  if name in ('mlp2', 'mlp8'):
    digits = load_dataset('digits', data_dir).train
    num_devices = int(name.removeprefix('mlp'))
    return Case(models.MLP(10), digits, num_devices, 32, 64, 8, 101)
  raise ValueError(
    f'unknown case {name!r}; use mlp2, mlp8, resnet2, '
    'mlp2_streamed or resnet2_streamed'
  )


def measure(case: Case) -> dict[str, Any]:
  """Run all loops in turn and return medians, quartiles and their ratio."""
  loops = {
    'engine': engine_loop(case),
    'scanned_by_hand': hand_written_loop(case, scan=True),
    'stepped_by_hand': hand_written_loop(case, scan=False),
  }
  rates = _take_turns(case, loops)
  medians = _medians(rates)
  return {
    'ratio': medians['engine']
    / max(medians['scanned_by_hand'], medians['stepped_by_hand']),
    'steps_per_second': medians,
    'quartiles': _quartiles(rates),
    'seconds_to_first_step': {
      name: loop.seconds_to_first_step for name, loop in loops.items()
    },
    'bytes_per_device': {
      name: loop.bytes_per_device for name, loop in loops.items()
    },
  }


def measure_streamed(case: Case) -> dict[str, Any]:
  """Run the engine on streamed and resident data in turn.

  Args:
    case: the model and its data.

  Returns:
    Medians, quartiles and the ratio of steps per second, and the share of the
    time in which the devices had no batches.
  """
  streamed = _streamed(case)
  trainers = {name: _trainer(case) for name in ('streamed', 'resident')}
  loops = {
    'streamed': engine_loop(case, trainers['streamed'], streamed),
    'resident': engine_loop(case, trainers['resident']),
  }
  waited = trainers['streamed'].waited()
  rates = _take_turns(case, loops)
  waited = trainers['streamed'].waited() - waited
  medians = _medians(rates)
  steps = case.dispatches * case.steps_per_dispatch
  return {
    'ratio': medians['streamed'] / medians['resident'],
    'steps_per_second': medians,
    'quartiles': _quartiles(rates),
    'data_wait': waited / sum(steps / rate for rate in rates['streamed']),
  }


def _take_turns(
  case: Case, loops: Mapping[str, Loop]
) -> dict[str, list[float]]:
  """Return the steps per second of each loop, measured in turn."""
  rates: dict[str, list[float]] = {name: [] for name in loops}
  for i in range(case.repeats):
    # The order alternates, because a loop may slow down the next one.
    for name in sorted(loops, reverse=bool(i % 2)):
      begun = time.perf_counter()
      for _ in range(case.dispatches):
        metrics = loops[name].run()
      jax.block_until_ready(metrics)
      steps = case.dispatches * case.steps_per_dispatch
      rates[name].append(steps / (time.perf_counter() - begun))
  return rates


def _medians(rates: Mapping[str, list[float]]) -> dict[str, float]:
  return {name: statistics.median(found) for name, found in rates.items()}


def _quartiles(rates: Mapping[str, list[float]]) -> dict[str, list[float]]:
  return {
    name: statistics.quantiles(found, n=4)[::2] for name, found in rates.items()
  }


def _optimizer() -> optax.GradientTransformation:
  return optax.sgd(0.01, momentum=0.9)


def _data(case: Case) -> Resident:
  """Return the batches, which are equal in all loops."""
  return pr.shared(
    case.data, batch_size=case.batch_size, transform=_transform(case)
  )


def _streamed(case: Case) -> Pipeline:
  """Return the batches of `_data`, read during the run."""
  source: Any = case.data
  if case.data['image'].shape[-1] == 3:
    source = PngExamples(case.data)
  # Few steps in advance, because they are read in the turn of another loop.
  ahead = case.dispatches * case.steps_per_dispatch // 8
  examples = ahead * case.num_devices * case.batch_size
  return pr.pipeline(
    source,
    batch_size=case.batch_size,
    transform=_transform(case),
    buffer_bytes=examples * (case.data['image'][0].nbytes + 4),
  )


def _transform(case: Case) -> Transform:
  pixels = augmentation.channel_statistics(case.data['image'])

  def transform(key: jax.Array, batch: Any) -> Any:
    del key
    return {**batch, 'image': augmentation.normalize(batch['image'], *pixels)}

  return transform


def _trainer(case: Case) -> Trainer:
  return pr.trainer(
    pr.pr_sgd(_optimizer(), period=PERIOD),
    classifier(case.model).loss_fn,
    num_replicas=case.num_devices,
    num_devices=case.num_devices,
  )


def engine_loop(
  case: Case, trainer: Trainer | None = None, streamed: Pipeline | None = None
) -> Loop:
  """Return the library's loop.

  Args:
    case: the model and its data.
    trainer: the trainer to use. Default: a new one.
    streamed: data to train on. Default: resident data.
  """
  trainer = trainer or _trainer(case)
  state = trainer.init(*initial(case, classifier(case.model)))
  data, steps = _data(case), case.steps_per_dispatch
  memory = memory_of(trainer.lower(state, data, steps))
  return make_loop(trainer.run, state, streamed or data, steps, memory)


def hand_written_loop(case: Case, *, scan: bool) -> Loop:
  """Return a minimal loop of PR-SGD, with one replica per device."""
  # The library only places the batches, so that all loops get equal ones.
  mesh = pr.engine.ReplicaMesh(case.num_devices, case.num_devices)
  resident = _data(case)
  batch_fn = resident.recipe.make(mesh.num_replicas)
  data = mesh.replicate(resident.arrays)
  task, tx = classifier(case.model), _optimizer()

  def one(carry: Any, data: Any) -> Any:
    params, model_state, opt_state, step = carry
    replica = lax.axis_index('devices')
    key = jax.random.fold_in(jax.random.key(0), step)
    data_key, loss_key = jax.random.split(jax.random.fold_in(key, replica))
    batch = batch_fn(data, step, replica, data_key)
    (loss, (model_state, metrics)), grads = jax.value_and_grad(
      task.loss_fn, has_aux=True
    )(params, model_state, batch, loss_key)
    params = lax.cond(
      (step + 1) % PERIOD == 0,
      lambda tree: lax.pmean(tree, 'devices'),
      lambda tree: tree,
      params,
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, model_state, opt_state, step + 1), (loss, metrics)

  @functools.partial(
    jax.pmap,
    axis_name='devices',
    devices=mesh.devices,
    donate_argnums=0,
    static_broadcasted_argnums=2,
  )
  def train_steps(carry: Any, data: Any, num_steps: int) -> Any:
    if not scan:
      return one(carry, data)
    return lax.scan(lambda c, _: one(c, data), carry, length=num_steps)

  params, model_state = initial(case, task)
  point = (params, model_state, tx.init(params), np.zeros((), np.int32))
  # Copied, because the program donates its arguments.
  carry = jax.pmap(
    lambda tree: jax.tree.map(jnp.copy, tree), devices=mesh.devices
  )(mesh.replicate(point))
  memory = memory_of(train_steps.lower(carry, data, case.steps_per_dispatch))
  calls = 1 if scan else case.steps_per_dispatch
  return make_loop(
    train_steps, carry, data, case.steps_per_dispatch, memory, calls
  )


def initial(case: Case, task: Task) -> Any:
  """Return (params, model_state), from which all loops start."""
  image = jnp.zeros((1, *case.data['image'].shape[1:]))
  return jax.jit(task.init)(jax.random.key(0), {'image': image})


def memory_of(lowered: jax.stages.Lowered) -> int:
  """Return the bytes that a program requires on one device."""
  found: Any = lowered.compile().memory_analysis()
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )


def make_loop(
  train_steps: Any,
  carry: Any,
  data: Any,
  num_steps: int,
  memory: int,
  calls: int = 1,
) -> Loop:
  """Return a compiled loop after two warm-up calls."""

  def run() -> Any:
    nonlocal carry
    for i in range(calls):
      carry, metrics = train_steps(carry, data, num_steps)
      if i % 2:  # because too many pending calls deadlock on CPU
        jax.block_until_ready(metrics)
    return metrics

  jax.clear_caches()  # because reading the memory compiled the program
  begun = time.perf_counter()
  jax.block_until_ready(run())
  first = time.perf_counter() - begun
  jax.block_until_ready(run())
  return Loop(run, first, memory)


def main() -> None:
  cli.make_fake_devices(8)
  with cli.one_line_errors(ValueError):
    cases = {n: make_case(n, FLAGS.data_dir) for n in FLAGS.cases}
  results: dict[str, Any] = {}
  streams: dict[str, Any] = {}
  for name, case in cases.items():
    print(f'{name} ...', flush=True)  # now, because a case takes minutes
    if name.endswith(STREAMED):
      streams[name] = measure_streamed(case)
    else:
      results[name] = measure(case)
  if results:
    rows = [_row(name, found) for name, found in results.items()]
    print(f'\n{tables.aligned(rows, COLUMNS)}')
  if streams:
    rows = [_streamed_row(name, found) for name, found in streams.items()]
    print(f'\n{tables.aligned(rows, STREAMED_COLUMNS)}')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  whole = {
    'machine': records.machine(),
    'peak_rss_mib': peak,
    'cases': results,
    'streams': streams,
  }
  print(f'\n{records.machine()}, peak resident memory {peak:.0f} MiB')
  if FLAGS.json is not None:
    path = pathlib.Path(FLAGS.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_text(path, writing.to_json(whole))


def _row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  """Return the row of a case: speeds, first steps and memory of its loops."""
  first = found['seconds_to_first_step'].values()
  memory = found['bytes_per_device'].values()
  return {
    'case': name,
    **found['steps_per_second'],
    'ratio': found['ratio'],
    'first': ' / '.join(f'{seconds:.1f}' for seconds in first),
    'memory': ' / '.join(f'{count / 2**20:.1f}' for count in memory),
  }


def _streamed_row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
  return {'case': name, **found['steps_per_second'], **found}


def _speed(name: str, title: str) -> Column:
  return Column(name, f'{title}, steps/s', '{:.1f}'.format, is_number=True)


COLUMNS = (
  Column('case'),
  _speed('engine', 'engine'),
  _speed('scanned_by_hand', 'scanned by hand'),
  _speed('stepped_by_hand', 'stepped by hand'),
  Column('ratio', show='{:.3f}'.format, is_number=True),
  Column('first', 'first step, s', is_number=True),
  Column('memory', 'memory per device, MiB', is_number=True),
)
STREAMED_COLUMNS = (
  Column('case'),
  _speed('streamed', 'streamed'),
  _speed('resident', 'resident'),
  Column('ratio', show='{:.3f}'.format, is_number=True),
  Column('data_wait', 'without data', '{:.1%}'.format, is_number=True),
)


if __name__ == '__main__':
  cli.run(main)
