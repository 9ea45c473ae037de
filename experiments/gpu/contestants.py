"""The loops that are measured: momentum SGD with an average every 4 steps.

All take their batches from examples on the device, a uniform draw for each
replica, and differ only in how the gradients of N replicas are computed.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.gpu import grouped, timing
from experiments.gpu.cases import (
  DTYPES,
  ENGINE,
  GROUPED,
  LOOP,
  UNROLLED,
  Case,
  Size,
  inputs,
  make_task,
)
import prsgd_jax as pr
from prsgd_jax.models.classification import Task

PERIOD, RATE, MOMENTUM = 4, 0.01, 0.9

# (params, model_state, batch) -> (gradients, model_state, losses), all [N, ...]
Gradients = Callable[[Any, Any, Any], tuple[Any, Any, jax.Array]]


def begin(case: Case, size: Size) -> tuple[Callable[[], Any], dict[str, Any]]:
  """Compile a case.

  Returns:
    The function of one dispatch, which keeps its state, and the numbers of the
    program: `timing.program` and `convolutions`, those that JAX traced.
  """
  if case.way.startswith(ENGINE):
    return _engine(case, size), {}
  data = examples(case, size)
  carry = first_state(case, size)
  steps = functools.partial(train_steps, case, size)
  traced = jax.make_jaxpr(steps)(carry, data)
  compiled = jax.jit(steps, donate_argnums=0).lower(carry, data).compile()
  numbers = {
    **timing.program(compiled),
    'convolutions': timing.convolutions(traced.jaxpr),
  }
  if case.way == LOOP:  # because XLA counts one replica of it
    del numbers['bytes_per_step']

  def run() -> Any:
    nonlocal carry
    carry, losses = compiled(carry, data)
    return losses

  return run, numbers


def train_steps(
  case: Case, size: Size, carry: Any, data: Any
) -> tuple[Any, jax.Array]:
  """Train all replicas for the steps of a dispatch.

  Args:
    case: the case.
    size: sizes of the models.
    carry: as `first_state` returns it.
    data: as `examples` returns them.

  Returns:
    The new carry, and the losses float32[steps, N].
  """
  gradients = gradients_of(case, make_task(case, size))
  return lax.scan(
    lambda c, _: _step(case, gradients, c, data),
    carry,
    None,
    length=case.num_steps,
  )


def _step(
  case: Case, gradients: Gradients, carry: Any, data: Any
) -> tuple[Any, jax.Array]:
  params, model_state, trace, step = carry
  batch = batch_of(case, data, step)
  grads, model_state, losses = gradients(params, model_state, batch)
  trace = jax.tree.map(lambda m, g: MOMENTUM * m + g, trace, grads)
  params = jax.tree.map(lambda x, m: x - RATE * m, params, trace)
  params = lax.cond(
    (step + 1) % PERIOD == 0,
    lambda tree: jax.tree.map(_mean, tree),
    lambda tree: tree,
    params,
  )
  return (params, model_state, trace, step + 1), losses


def _mean(x: jax.Array) -> jax.Array:
  return jnp.broadcast_to(x.mean(axis=0, keepdims=True), x.shape)


def batch_of(case: Case, data: Any, step: jax.Array) -> Any:
  """Draw the batches [N, batch, ...] of a step, as models read them."""
  key = jax.random.fold_in(jax.random.key(0, impl='threefry2x32'), step)
  count = jax.tree.leaves(data)[0].shape[0]
  rows = jax.random.randint(key, (case.num_replicas, case.batch_size), 0, count)
  return prepared(jax.tree.map(lambda x: x[rows], data))


def prepared(batch: Any) -> Any:
  """Return a batch with pixels around zero; other arrays are kept."""
  if 'image' not in batch:
    return batch
  image = batch['image'].astype(jnp.float32) / 128 - 1
  return {**batch, 'image': image}


def gradients_of(case: Case, task: Task) -> Gradients:
  """Return the function of all gradients, by the way of the case."""
  if case.way == GROUPED:
    return functools.partial(grouped.gradients, dtype=DTYPES[case.dtype])
  key = jax.random.key(0, impl='threefry2x32')  # no model draws from it

  def one(params: Any, model_state: Any, batch: Any) -> Any:
    (loss, (model_state, _)), grads = jax.value_and_grad(
      task.loss_fn, has_aux=True
    )(params, model_state, batch, key)
    return grads, model_state, loss

  if case.way == LOOP:
    return lambda *block: lax.map(lambda own: one(*own), block)
  if case.way == UNROLLED:
    return functools.partial(_unrolled, one, case.num_replicas)
  return jax.vmap(one)


def _unrolled(one: Callable[..., Any], n: int, *block: Any) -> Any:
  results = [one(*jax.tree.map(lambda x, i=i: x[i], block)) for i in range(n)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def examples(case: Case, size: Size) -> dict[str, jax.Array]:
  """Return random examples on the device."""
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(
      rng.integers(most, size=(size.num_examples, *shape)).astype(kind)
    )
    for name, (shape, kind, most) in inputs(case, size).items()
  }


def first_state(case: Case, size: Size) -> Any:
  """Return (params, model_state, momentum, step), leaves [N, ...]."""
  params, model_state = point(case, size)
  n = case.num_replicas

  def repeated(x: jax.Array) -> jax.Array:
    return jnp.repeat(x[None], n, axis=0)

  params, model_state = jax.tree.map(repeated, (params, model_state))
  trace = jax.tree.map(jnp.zeros_like, params)
  return params, model_state, trace, jnp.zeros((), jnp.int32)


def point(case: Case, size: Size) -> tuple[Any, Any]:
  """Return the first (params, model_state) of one replica."""
  example = prepared(jax.tree.map(lambda x: x[:1], examples(case, size)))
  return jax.jit(make_task(case, size).init)(jax.random.key(0), example)


def _engine(case: Case, size: Size) -> Callable[[], Any]:
  """Return a dispatch of the library's trainer, compiled by the first call."""
  tx = optax.sgd(RATE, momentum=MOMENTUM)
  trainer = pr.trainer(
    pr.pr_sgd(tx, period=PERIOD),
    make_task(case, size).loss_fn,
    num_replicas=case.num_replicas,
    num_devices=1,
    block=case.way.removeprefix(ENGINE).removeprefix(', ') or None,
  )
  state = trainer.init(*point(case, size))
  arrays = jax.tree.map(np.asarray, examples(case, size))
  data = pr.shared(
    arrays,
    batch_size=case.batch_size,
    transform=lambda key, batch: prepared(batch),
  )

  def run() -> Any:
    nonlocal state
    state, metrics = trainer.run(state, data, case.num_steps)
    return metrics

  return run


def cost(case: Case, size: Size) -> dict[str, float]:
  """Return what one step costs at least.

  XLA counts the operations of the gradients in the program of one replica,
  before it is optimized.

  Returns:
    `flops`, floating-point operations of a step.
  """
  task = make_task(case, size)
  params, model_state = jax.eval_shape(lambda: point(case, size))
  batch = jax.eval_shape(
    lambda: batch_of(
      case._replace(num_replicas=1), examples(case, size), jnp.int32(0)
    )
  )
  own = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True)).lower(
    params, model_state, own, key
  )
  found: Any = lowered.cost_analysis() or {}
  return {'flops': case.num_replicas * float(found.get('flops', 'nan'))}
