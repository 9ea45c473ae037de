"""The cases of `benchmark.py`, and the loops that it measures."""

from collections.abc import Callable
import functools
import time
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools.png_examples import PngExamples
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.values import Resident
from prsgd_jax.engine.trainer import Trainer
from prsgd_jax.models.classification import Task, classifier

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


def _optimizer() -> optax.GradientTransformation:
  return optax.sgd(0.01, momentum=0.9)


def _data(case: Case) -> Resident:
  """Return the batches, which are equal in all loops."""
  return pr.shared(
    case.data, batch_size=case.batch_size, transform=_transform(case)
  )


def streamed_data(case: Case) -> Pipeline:
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


def make_trainer(case: Case) -> Trainer:
  """Return the trainer of the library's loop."""
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
  trainer = trainer or make_trainer(case)
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
