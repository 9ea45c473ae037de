"""Local SGD in DrJAX, with one client for each replica."""

import functools
from typing import Any

import drjax
from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools.benchmark_worker import Peer, Setting
from prsgd_jax import models
from prsgd_jax.models.classification import classifier


def make(setting: Setting) -> Peer:
  """Return a loop that scans over rounds, and over steps in each client."""
  options, num_clients = setting.options, setting.options['replicas']
  period, dispatch = options['period'], options['dispatch']
  loss_fn = classifier(getattr(models, options['model'])(10)).loss_fn
  tx = optax.sgd(options['learning_rate'], momentum=options['momentum'])
  data = jax.tree.map(jnp.asarray, setting.data)
  rounds_of_table = len(setting.data['rows']) // period

  def train(params: Any, opt_state: Any, rows: Any) -> Any:
    """Take the steps of a round in one client."""

    def step(carry: Any, rows: Any) -> Any:
      params, opt_state = carry
      batch = {name: data[name][rows] for name in ('image', 'label')}
      (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        params, {}, batch, jax.random.key(0)
      )
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    (params, opt_state), losses = lax.scan(step, (params, opt_state), rows)
    return params, opt_state, losses[-1]

  @drjax.program(placements={'clients': num_clients})
  def one_round(params: Any, opt_states: Any, rows: Any) -> Any:
    start = drjax.broadcast(params)
    found, opt_states, losses = drjax.map_fn(train, (start, opt_states, rows))
    return drjax.reduce_mean(found), opt_states, drjax.reduce_mean(losses)

  @functools.partial(jax.jit, donate_argnums=0)
  def run_rounds(carry: Any) -> Any:
    def body(carry: Any, _: None) -> Any:
      params, opt_states, done = carry
      start = (done % rounds_of_table) * period
      rows = lax.dynamic_slice_in_dim(data['rows'], start, period)
      params, opt_states, loss = one_round(
        params, opt_states, jnp.moveaxis(rows, 1, 0)
      )
      return (params, opt_states, done + 1), loss

    return lax.scan(body, carry, None, length=dispatch // period)

  params = traverse_util.unflatten_dict(setting.params, sep='/')
  params = jax.tree.map(jnp.asarray, params)
  opt_states = jax.tree.map(
    lambda x: jnp.stack([x] * num_clients), tx.init(params)
  )
  carry = (params, opt_states, jnp.zeros((), jnp.int32))

  def run(steps: int) -> float:
    nonlocal carry
    for _ in range(steps // dispatch):
      carry, losses = run_rounds(carry)
    jax.block_until_ready(carry)
    return float(losses[-1])

  def average() -> dict[str, np.ndarray]:
    found = traverse_util.flatten_dict(carry[0], sep='/')
    return {name: np.asarray(x) for name, x in found.items()}

  return Peer(dispatch, run, average)
