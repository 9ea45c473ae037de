"""MANY RUNS: an algorithm mapped over settings and seeds, in one program.

Toy problems need thousands of short runs, which a trainer would start one by
one. Here all replicas of a run form one block on one device, and `jax.vmap`
maps over settings and seeds. A step is `training.one_step`, as in a trainer.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import AXIS_NAME, Array, ArrayTree, ReplicaTransformation
from prsgd_jax.checks import check_listed, check_positive_int, check_seed
from prsgd_jax.data.values import Resident, check_resident
from prsgd_jax.engine.engine_checks import check_arrays, check_setting
from prsgd_jax.engine.replica_mesh import ReplicaMesh
from prsgd_jax.engine.train_state import TrainState, create_block
from prsgd_jax.engine.training import (
  LossFn,
  StepKeys,
  gradient_of,
  one_step,
  step_keys,
)
from prsgd_jax.tracing.caller_functions import check_signature
from prsgd_jax.tracing.isolation import completing, isolated
from prsgd_jax.tree_types import describe


def map_runs(
  make: Callable[[Array], ReplicaTransformation],
  settings: Sequence[float],
  seeds: Sequence[int],
  *,
  loss_fn: LossFn,
  data: Resident,
  start: ArrayTree,
  num_replicas: int,
  num_steps: int,
  observe: Callable[[ArrayTree], ArrayTree],
  model_state: ArrayTree = (),
  every: int = 1,
  per_replica: bool = False,
  keys_fn: Callable[[Array, Array, Array], StepKeys] = step_keys,
) -> ArrayTree:
  """Run an algorithm once for every setting and seed.

  A run equals that of a trainer with the same algorithm, seed and data, up to
  rounding.

  Args:
    make: function from a setting, such as a learning rate, to an algorithm. All
      settings must communicate at the same steps.
    settings: K numbers, K >= 1.
    seeds: S >= 1 seeds of all randomness except the order of the data, in 0 ..
      2^32 - 1.
    loss_fn: `(params, model_state, batch, key) -> (loss, (model_state,
      metrics))` of one replica.
    data: data of every run, such as `pr.shared(arrays, batch_size=16)`.
    start: parameters from which all replicas start, or a function of a key that
      returns them.
    num_replicas: N, >= 1.
    num_steps: T, a multiple of `every`.
    observe: function of the output parameters `[N, ...]`; its result is kept.
    model_state: model state of one replica at the start. Default: none.
    every: steps between observations. Default: 1.
    per_replica: whether `start` and `model_state` have the leading axis N.
      Default: False.
    keys_fn: `(root, step, replica_index) -> StepKeys`. Default: the engine's.

  Returns:
    The results of `observe` every `every` steps, NumPy leaves `[K, S, T /
    every, ...]`.

  Raises:
    ValueError: if `every` does not divide `num_steps`, or an argument is not as
      described.

  Example:
    >>> import jax.numpy as jnp, numpy as np, optax, prsgd_jax as pr
    >>> def loss_fn(params, model_state, batch, key):
    ...   return jnp.square(params - batch).mean(), (model_state, {})
    >>> found = map_runs(
    ...     lambda rate: pr.k_avg(optax.sgd(rate), period=4), [0.1, 0.2], [0],
    ...     loss_fn=loss_fn, data=pr.shared(np.ones(64), batch_size=2),
    ...     start=jnp.zeros(()), num_replicas=4, num_steps=8, every=8,
    ...     observe=jnp.mean)
    >>> found.shape
    (2, 1, 1)
  """
  every = check_positive_int('every', every)
  if check_positive_int('num_steps', num_steps) % every:
    raise ValueError(
      f'num_steps must be a multiple of every={every}, got {num_steps}'
    )
  data = check_resident('map_runs', data)
  check_signature('make(setting)', make)
  check_signature('observe(params)', observe)
  rates = np.asarray(settings, float)
  if rates.ndim != 1:
    raise ValueError(
      f'settings must be a list of numbers, got {describe(settings)}'
    )
  if not rates.size:
    raise ValueError('settings must have a number at least, got []')
  listed = check_listed('seeds', np.asarray(seeds).tolist())
  roots = [check_seed('seeds', seed) for seed in listed]
  if not roots:
    raise ValueError('seeds must have a number at least, got []')
  mesh = ReplicaMesh(num_replicas, 1, jax.local_devices()[:1])
  grad_fn = jax.vmap(gradient_of(loss_fn))
  batch_fn = isolated('batch_fn', data.recipe.make(mesh.num_replicas))
  draw_fn = jax.vmap(batch_fn, in_axes=(None, None, 0, 0))
  index = jnp.arange(num_replicas, dtype=jnp.int32)

  def run(
    setting: Array, seed: Array, own: ArrayTree, arrays: ArrayTree
  ) -> ArrayTree:
    begin = own if callable(start) else start
    algorithm = make(setting)
    check_setting('map_runs', mesh, algorithm)

    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
      keys = keys_fn(state.key, state.step, index)
      batch = draw_fn(arrays, state.step, index, keys.batch)
      return one_step(algorithm, grad_fn, state, index, keys, batch)[0], None

    def stretch(state: TrainState, _: None) -> tuple[TrainState, ArrayTree]:
      state, _ = lax.scan(step, state, length=every)
      output = algorithm.output(state.replica(), state.algorithm_state)
      return state, observe(output.params)

    check_arrays(params=begin, model_state=model_state)
    point = (begin, model_state)
    if not per_replica:
      point = jax.tree.map(functools.partial(_copies, num_replicas), point)
    jax.tree.map(functools.partial(_check_axis, num_replicas), point)
    state = create_block(algorithm, num_replicas, seed, point)
    return lax.scan(stretch, state, length=num_steps // every)[1]

  chosen = jnp.asarray(roots, jnp.uint32)
  begins = _begins(start, chosen, num_steps) if callable(start) else ()
  found = completing(_mapped(run), functions=2)(
    jnp.asarray(rates, float),
    chosen,
    begins,
    jax.tree.map(jnp.asarray, data.arrays),
  )
  return jax.tree.map(lambda x: jax.device_get(x)[0], found)


def _begins(
  start: Callable[[Array], ArrayTree], seeds: Array, num_steps: int
) -> ArrayTree:
  """Return the start of every seed, leaves `[S, ...]`.

  It is a separate program because the initializers of a network take longer
  to compile than a step, and calls that share them then compile them once.
  """

  def begin(seed: Array, number: Array) -> ArrayTree:
    root = jax.random.key(seed, impl='threefry2x32')
    return start(jax.random.fold_in(root, number))

  # An argument, so that the program does not depend on the number of steps.
  number = jnp.asarray(num_steps, jnp.uint32)
  over_seeds = jax.vmap(begin, in_axes=(0, None))
  found: ArrayTree = jax.jit(over_seeds, compiler_options=_compiler_options())(
    seeds, number
  )
  return found


def _copies(num_replicas: int, x: Array) -> Array:
  return jnp.stack([jnp.asarray(x)] * num_replicas)


def _check_axis(num_replicas: int, x: Array) -> None:
  if x.shape[:1] != (num_replicas,):
    raise ValueError(
      f'expected a leading axis of {num_replicas} replicas, got an array of '
      f'shape {x.shape}'
    )


def _mapped(run: Callable[..., ArrayTree]) -> Callable[..., ArrayTree]:
  """Map a run over settings and seeds, on one device with all replicas.

  A setting and a seed share one axis: YNNPACK, which multiplies on a CPU,
  refuses products of more than 8 axes. Those of attention have 5, and the
  replicas and the device add 2.
  """

  def over_pairs(
    rates: Array, seeds: Array, begins: ArrayTree, arrays: ArrayTree
  ) -> ArrayTree:
    shape = (len(rates), len(seeds))
    of_seeds = jax.tree.map(
      lambda x: jnp.concatenate([x] * len(rates)), (seeds, begins)
    )
    over_all = jax.vmap(run, in_axes=(0, 0, 0, None))
    found = over_all(jnp.repeat(rates, len(seeds)), *of_seeds, arrays)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)

  alone: Callable[..., Any] = jax.vmap(
    over_pairs, in_axes=None, axis_name=AXIS_NAME, axis_size=1
  )
  return jax.jit(alone, compiler_options=_compiler_options())


def _compiler_options() -> dict[str, str] | None:
  """Return options that avoid a bug of jaxlib, None if none are needed.

  Since jaxlib 0.10.2, sums of products may be wrong on a CPU: runs of several
  seeds took all their gradients at the start. YNNPACK is the cause
  (jax-ml/jax, issue 39103), so no operation may be handed to it.
  """
  if jax.default_backend() == 'cpu' and jax.__version_info__ >= (0, 10, 2):
    return {'xla_cpu_experimental_ynn_fusion_type': ''}
  return None
