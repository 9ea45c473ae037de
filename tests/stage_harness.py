"""Run single stages on a loss whose gradient is the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness

N = 4
MOMENTUM_SGD = optax.sgd(0.1, momentum=0.9)


def linear_loss(params, model_state, batch, key):
  """The gradient is the batch; the model state counts and averages."""
  del key
  loss = params @ batch
  model_state = {
    'mean': 0.5 * model_state['mean'] + 0.5 * batch.sum(),
    'seen': model_state['seen'] + 1,
  }
  return loss, (model_state, {'norm': jnp.abs(params).sum()})


MODEL_STATE = {'mean': np.float32(0), 'seen': np.int32(0)}


def batches(mesh, num_steps, seed=0):
  """[D, steps, V, 3], and the same as [steps, N, 3]."""
  rng = np.random.default_rng(seed)
  g = rng.normal(size=(num_steps, mesh.num_replicas, 3)).astype(np.float32)
  blocks = g.reshape((num_steps, mesh.num_devices, mesh.block_size, 3))
  return mesh.place_per_device(np.moveaxis(blocks, 1, 0)), g


def run(*stages, num_steps, num_devices=2, loss=linear_loss):
  """The state and metrics after some steps from zero, as [N, ...]."""
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  algorithm = pr.chain(*stages)
  state = pr.engine.create_train_state(
    mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
  )
  train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
  data, g = batches(mesh, num_steps)
  state, metrics = train_steps(state, data)
  fields = (state.params, state.opt_state, state.model_state)
  metrics = jax.tree.map(
    lambda x: np.moveaxis(np.asarray(x), 1, 0).reshape(num_steps, N), metrics
  )
  return *mesh.gather(fields), metrics, g


def jaxpr_equations(algorithm, num_devices, loss=linear_loss):
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  state = pr.engine.create_train_state(
    mesh, algorithm, np.zeros(3, np.float32), MODEL_STATE
  )
  train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
  jaxpr = jax.make_jaxpr(train_steps)(state, batches(mesh, 1)[0])
  return list(harness.equations(jaxpr.jaxpr))


def conditionals(equations):
  return [eqn for eqn, _ in equations if eqn.primitive.name == 'cond']


def collectives(equations):
  return [
    (eqn, conditional)
    for eqn, conditional in equations
    if eqn.primitive.name.startswith(('psum', 'ppermute', 'all_gather'))
  ]
