"""Run an algorithm of the library on a problem of `reference`.

The parameters are a tree of two leaves, of which the oracle knows the
concatenation: x = (w, b).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.engine import checkpoint_leaves


def to_tree(x):
  """float[..., d] -> the parameters: `w` of two columns, `b` the rest."""
  half = (x.shape[-1] - 2) // 2
  w = x[..., : 2 * half].reshape((*x.shape[:-1], half, 2))
  return {'b': x[..., 2 * half :], 'w': w}


def to_vector(params):
  """The inverse of `to_tree`, on `[..., ]` leaves."""
  b, w = np.asarray(params['b']), np.asarray(params['w'])
  return np.concatenate([w.reshape((*b.shape[:-1], -1)), b], axis=-1)


def problem_loss(params, model_state, batch, key):
  """`reference.Problem.loss` in JAX, for one replica."""
  del key
  hessian, target, features, noise = batch
  x = jnp.concatenate([params['w'].ravel(), params['b']])
  e = x - target
  loss = e @ hessian @ e / 2 + jnp.log(jnp.cosh(features @ x)).sum() + noise @ x
  return loss, (model_state, {})


def problem_batches(mesh, problem, steps, dtype=np.float64):
  """The batches of the given 0-based steps, `[D, steps, V, ...]`."""
  steps = np.asarray(steps)
  blocks = (mesh.num_devices, mesh.block_size)

  def lay_out(x):  # [steps, N, ...]
    x = x.reshape((len(steps), *blocks, *x.shape[2:]))
    return np.moveaxis(x, 1, 0).astype(dtype)

  def constant(x):  # [N, ...]
    return lay_out(np.broadcast_to(x, (len(steps), *x.shape)))

  return mesh.place_per_device(
    (
      constant(problem.hessian),
      constant(problem.target),
      constant(problem.features),
      lay_out(problem.noise[steps]),
    )
  )


class Sent(NamedTuple):
  """A collective of a jaxpr; `conditional`: whether it is inside a cond."""

  name: str
  params: dict
  operands: list
  conditional: bool


def equations(jaxpr, conditional=False):
  """All equations of a jaxpr and of those inside it, with `conditional`."""
  for eqn in jaxpr.eqns:
    yield eqn, conditional
    inside = conditional or eqn.primitive.name == 'cond'
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from equations(inner, inside)


def collectives_of(fn, *args):
  """Every collective that a mapped function asks for, in order."""
  names = ('psum', 'pmean', 'ppermute', 'all_gather', 'all_to_all', 'pshuffle')
  return [
    Sent(eqn.primitive.name, eqn.params, [v.aval for v in eqn.invars], inside)
    for eqn, inside in equations(jax.make_jaxpr(fn)(*args).jaxpr)
    if eqn.primitive.name.startswith((*names, 'reduce_scatter', 'pgather'))
  ]


class Engine(NamedTuple):
  """A compiled algorithm; `traces` counts how often the loss was traced."""

  mesh: pr.engine.ReplicaMesh
  algorithm: pr.base.ReplicaTransformation
  train_steps: Callable[..., Any]
  traces: list[int]


def make_engine(algorithm, num_replicas, num_devices, loss=problem_loss):
  traces: list[int] = []

  def counted(*args):
    traces.append(1)
    return loss(*args)

  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  return Engine(
    mesh,
    algorithm,
    pr.engine.make_train_steps(mesh, algorithm, counted),
    traces,
  )


def to_host(state):
  """The state as NumPy arrays, typed keys as their data."""

  def fetch(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    return np.array(x)

  return jax.tree.map(fetch, state)


def leaves_of(host):
  """The result of `to_host`, by the names of a checkpoint, `[N, ...]`."""
  leaves = {}
  for name, x in zip(
    checkpoint_leaves.names(host), jax.tree.leaves(host), strict=True
  ):
    shared = checkpoint_leaves.is_shared(name)
    leaves[name] = x[0] if shared else x.reshape((-1, *x.shape[2:]))
  return leaves


def from_host(mesh, host):
  """The inverse of `to_host`, on the devices of the mesh."""
  placed = mesh.place_per_device(host)
  key = jax.random.wrap_key_data(placed.key, impl='threefry2x32')
  return placed.replace(key=key)


def waits_of(sent, num_replicas, turn=0, generator=None):
  """bool[N, N], whether replica i waits for j, of a `Traffic` in one round."""
  index = np.arange(num_replicas)
  if isinstance(sent.waits, int):
    return index[:, None] // sent.waits == index // sent.waits
  waits = np.zeros((num_replicas, num_replicas), bool)
  senders = sent.waits(turn, generator)
  if isinstance(senders, tuple):
    origin, begins = senders
    counts = np.diff(np.append(begins, len(origin)))
    waits[np.repeat(index, counts), origin] = True
  else:
    waits[index, senders] = True
  return waits


def bare_context(mesh, step=0):
  """What a mixing may read, inside a mapped function; no loss."""
  keys = jax.random.split(jax.random.key(0), mesh.num_replicas)
  replica = mesh.replica_index()
  return pr.base.Context(
    step=jnp.asarray(step, jnp.int32),
    replica=replica,
    key=keys[replica],
    shared_key=jax.random.key(1),
    value_and_grad=lambda params, model_state: None,
    round=jnp.asarray(step, jnp.int32),
  )


def stage_keys(num_steps, path, num_replicas=8, seed=0):
  """The keys that a stage sees at each step.

  Args:
    num_steps: T.
    path: the indices of the stage in the chains around it, outermost first.
    num_replicas: N.
    seed: of `create_train_state`.

  Returns:
    (context.key of all replicas, key[T, N]; context.shared_key, key[T]).
  """
  root = jax.random.key(seed, impl='threefry2x32')
  shared_root, replica_root = jax.random.split(root)
  fold = jax.random.fold_in

  def at_step(t):
    step_key = fold(replica_root, t)
    keys = [
      jax.random.split(fold(step_key, r), 3)[1] for r in range(num_replicas)
    ]
    shared = fold(shared_root, t)
    for i in path:
      keys, shared = [fold(key, i) for key in keys], fold(shared, i)
    return jnp.stack(keys), shared

  return jax.vmap(at_step)(jnp.arange(num_steps))


def state_types(mesh, algorithm, params, model_state=()):
  """The state of a new run, shapes and types only: nothing is compiled."""
  return jax.eval_shape(
    lambda: pr.engine.create_train_state(mesh, algorithm, params, model_state)
  )


class Run(NamedTuple):
  """Observations of a run: x `[T + 1, N, d]`, state, metrics `[T, N]`."""

  x: np.ndarray
  state: Any
  metrics: dict
  mesh: pr.engine.ReplicaMesh


def run_problem(algorithm, problem, num_devices=2, seed=0):
  """Run an algorithm on a problem, step by step, in float64."""
  with jax.enable_x64(True):
    engine = make_engine(algorithm, problem.num_replicas, num_devices)
    mesh = engine.mesh
    state = pr.engine.create_train_state(
      mesh, algorithm, to_tree(problem.start), seed=seed
    )
    points, seen = [to_vector(mesh.gather(state.params))], []
    for t in range(problem.num_steps):
      batch = problem_batches(mesh, problem, [t])
      state, metrics = engine.train_steps(state, batch)
      points.append(to_vector(mesh.gather(state.params)))
      seen.append(jax.tree.map(lambda x: np.asarray(x).ravel(), metrics))
    metrics = jax.tree.map(lambda *xs: np.stack(xs), *seen)
    return Run(np.stack(points), state, metrics, mesh)
