"""Minimal loops of local SGD, as one writes them without the library."""

from collections.abc import Callable, Sequence
import functools
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools import benchmark_cases, benchmark_loops
from experiments.tools.benchmark_cases import PERIOD, Case
from experiments.tools.benchmark_loops import HAND, Contestant, Turn
import prsgd_jax as pr

DEVICES = 'devices'


class Block(NamedTuple):
  """A way to hold and to train the replicas of one device.

  Attributes:
    start: `(replica, number) -> replicas`, copies of a replica.
    each: `(fn, replicas) -> (replicas, losses)`, with `fn(replica, index)`.
    mean: `replicas -> replicas`, with the parameters averaged over all devices.
    params: `replicas -> a list of parameters` of parts of the replicas, by
      NumPy, because many pending sums over devices deadlock on CPU.
  """

  start: Callable[[Any, int], Any]
  each: Callable[[Callable[..., Any], Any], Any]
  mean: Callable[[Any], Any]
  params: Callable[[Any], list[Any]]


def by_hand(case: Case, num_devices: int, *, scan: bool) -> Contestant:
  """Return a loop in a pmap.

  Replicas that share a device are mapped by vmap. With convolutions, they are
  written out, because a convolution with an axis of kernels is slow on CPU.

  Args:
    case: the case.
    num_devices: number of devices, which divides the number of replicas.
    scan: whether one dispatch scans over steps. Otherwise, each step is one.
  """
  size = case.num_replicas // num_devices
  block = WRITTEN_OUT if case.convolves or size == 1 else VMAPPED
  # The library only places the data and draws equal batches.
  mesh = pr.engine.ReplicaMesh(num_devices, num_devices)
  resident = benchmark_cases.resident(case)
  data = mesh.replicate(resident.arrays)
  train_steps = _program(
    case, block, size, resident.recipe.make(case.num_replicas), mesh.devices,
    scan=scan,
  )  # fmt: skip
  params, model_state = benchmark_cases.initial(case)
  replica = params, model_state, benchmark_cases.optimizer().init(params)
  start = block.start(replica, size), np.zeros((), np.int32)
  # Copied, because the program donates its arguments.
  carry = jax.pmap(
    lambda tree: jax.tree.map(jnp.copy, tree), devices=mesh.devices
  )(mesh.replicate(start))

  def run(steps: int) -> Turn:
    nonlocal carry
    begun = time.perf_counter()
    for i in range(steps // case.dispatch if scan else steps):
      carry, losses = train_steps(carry, data, case.dispatch)
      if i % 2:  # because too many pending calls deadlock on CPU
        jax.block_until_ready(losses)
    jax.block_until_ready((carry, losses))
    lasted = time.perf_counter() - begun
    parts = np.stack(jax.tree.leaves(losses))  # [parts, devices, (steps,) ...]
    return Turn(lasted, float((parts[:, :, -1] if scan else parts).mean()))

  def average() -> dict[str, np.ndarray]:
    parts = map(benchmark_cases.flat, block.params(carry[0]))
    return benchmark_cases.mean(list(parts))

  return Contestant(
    f'by hand, {"scanned" if scan else "stepped"}, '
    f'{benchmark_loops.devices_label(num_devices)}',
    HAND,
    case.dispatch if scan else 1,
    run,
    average,
  )


def _program(
  case: Case,
  block: Block,
  size: int,
  batch_fn: Any,
  devices: Sequence[jax.Device],
  *,
  scan: bool,
) -> Callable[..., Any]:
  """Return `(carry, data, num_steps) -> (carry, losses)` of all devices."""
  loss_fn, tx = benchmark_cases.task(case).loss_fn, benchmark_cases.optimizer()
  key = jax.random.key(0)  # not used by these models

  def local_step(replica: Any, index: Any, data: Any, step: Any) -> Any:
    params, model_state, opt_state = replica
    batch = batch_fn(data, step, index, key)
    (loss, (model_state, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, model_state, batch, key
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return (params, model_state, opt_state), loss

  def one_step(carry: Any, data: Any) -> Any:
    replicas, step = carry
    first = lax.axis_index(DEVICES) * size
    replicas, losses = block.each(
      lambda replica, i: local_step(replica, first + i, data, step), replicas
    )
    is_last = (step + 1) % PERIOD == 0
    replicas = lax.cond(is_last, block.mean, lambda same: same, replicas)
    return (replicas, step + 1), losses

  @functools.partial(
    jax.pmap,
    axis_name=DEVICES,
    devices=devices,
    donate_argnums=0,
    static_broadcasted_argnums=2,
  )
  def train_steps(carry: Any, data: Any, num_steps: int) -> Any:
    if not scan:
      return one_step(carry, data)
    return lax.scan(lambda c, _: one_step(c, data), carry, length=num_steps)

  return train_steps


def _each_written_out(fn: Callable[..., Any], replicas: Any) -> Any:
  done = [fn(replica, i) for i, replica in enumerate(replicas)]
  return [replica for replica, _ in done], [loss for _, loss in done]


def _mean_written_out(replicas: Any) -> Any:
  params = jax.tree.map(
    lambda *xs: lax.pmean(sum(xs) / len(xs), DEVICES),
    *(replica[0] for replica in replicas),
  )
  return [(params, *replica[1:]) for replica in replicas]


WRITTEN_OUT = Block(
  lambda replica, number: [replica] * number,
  _each_written_out,
  _mean_written_out,
  lambda replicas: [
    jax.tree.map(lambda x: np.asarray(x).mean(0), replica[0])
    for replica in replicas
  ],
)


def _each_vmapped(fn: Callable[..., Any], replicas: Any) -> Any:
  size = jax.tree.leaves(replicas)[0].shape[0]
  return jax.vmap(fn)(replicas, jnp.arange(size))


def _mean_vmapped(replicas: Any) -> Any:
  params = jax.tree.map(
    lambda x: jnp.broadcast_to(lax.pmean(x.mean(0), DEVICES), x.shape),
    replicas[0],
  )
  return (params, *replicas[1:])


VMAPPED = Block(
  lambda replica, number: jax.tree.map(
    lambda x: jnp.stack([x] * number), replica
  ),
  _each_vmapped,
  _mean_vmapped,
  lambda replicas: [
    jax.tree.map(lambda x: np.asarray(x).mean((0, 1)), replicas[0])
  ],
)
