"""Everything that a process can read of a row of the law table.

A row is run by the trainer, in several processes by every one of them, so that
two layouts of processes and devices can be compared. The names of the arrays
begin with the tolerance that two layouts may have, see `process_groups`.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.base import AXIS_NAME
from prsgd_jax.engine.replica_mesh import first
from prsgd_jax.tracing.keys import to_data
from tests import harness, reference
from tests.rows import TABLE, N, T

HALF = T // 2
# Enough for every process and both tails of a batch: 13 = 3 * 4 + 1.
EXAMPLES, EVAL_BATCH = 13, 2
# The programs' names of sums over the devices.
SUMS = ('all_reduce', 'reduce_scatter')


def loss_fn(params, model_state, batch, key):
  """The loss of the tables, with a model state of each kind of leaf."""
  loss, _ = harness.problem_loss(params, (), batch, key)
  model_state = {
    'key': model_state['key'],
    'mean': 0.5 * model_state['mean'] + 0.5 * params['b'],
    'seen': model_state['seen'] + 1,
  }
  return loss, (model_state, {'size': jnp.square(params['w']).sum(axis=1)})


def moments(params, model_state, batch, key):
  """A loss whose state is a moving mean of the examples."""
  del key
  mean = 0.9 * model_state['mean'] + 0.1 * batch.mean(axis=0)
  return params['b'].sum(), ({**model_state, 'mean': mean}, {})


def eval_fn(params, model_state, batch):
  b = params['b'] + model_state['mean']
  return {'error': jnp.square(batch @ b - params['w'].sum())}


def batch_fn(data, step, replica, key):
  """A replica's problem with the noise of the step, and some of its own."""
  hessian, target, features, noise = data
  draw = jax.random.normal(key, noise.shape[2:], noise.dtype)
  noise = noise[step, replica] + 0.1 * draw
  return hessian[replica], target[replica], features[replica], noise


def stream(arrays, begun=0):
  """The batches of all replicas, which every process takes whole."""
  *constant, noise = arrays
  return pr.stream((*constant, noise[t]) for t in range(begun, T))


def flat(prefix, tree):
  """Name -> array of a tree of NumPy arrays, `()` for no leaf."""
  return {
    f'{prefix}{jax.tree_util.keystr(path)}': np.asarray(x)
    for path, x in jax.tree.flatten_with_path(to_data(tree))[0]
  }


def gathered(state):
  """All replicas of a state, which every process must ask for."""
  own = state.on_devices
  return {
    'params': state.params,
    'opt_state': state.opt_state,
    'model_state': state.model_state,
    'registers': state.registers,
    'algorithm_state': state.mesh.gather(own.algorithm_state),
    'step': state.step,
    'key': first(to_data(own.key)),
  }


@functools.cache
def inputs():
  problem = reference.make_problem(N, T)
  arrays = (problem.hessian, problem.target, problem.features, problem.noise)
  examples = np.random.default_rng(0).normal(size=(EXAMPLES, 2))
  start = harness.to_tree(problem.start)
  model_state = {
    'key': jax.random.key(7),
    'mean': np.zeros(2),
    'seen': np.zeros((), np.int32),
  }
  return arrays, examples, (start, model_state)


def observe(
  name, *, map_by='pmap', directory=None, read=False, lower=False, **placement
):
  """Run a row for T steps, and return everything that a user can read.

  Args:
    name: name of the row.
    map_by: the function that maps over the devices.
    directory: where the state is saved and restored from; None saves nothing.
    read: whether the state is evaluated and averaged, too.
    lower: whether to add `exact`, whether the program sends no sums.
    **placement: further arguments of `pr.trainer`.
  """
  arrays, examples, point = inputs()
  make_trainer = functools.partial(
    pr.trainer, TABLE[name].make(), num_replicas=N, map_by=map_by, **placement
  )
  trainer = make_trainer(loss_fn, eval_fn=eval_fn)
  # In turn, because both ways place rows.
  streamed = list(TABLE).index(name) % 2
  resident = pr.data.drawn(arrays, batch_fn)
  data = stream(arrays) if streamed else resident
  state = trainer.init(*point, seed=3)
  seen = {}
  if lower:
    program = trainer.lower(state, resident, HALF).as_text()
    seen['exact'] = np.asarray(not any(word in program for word in SUMS))
  seen |= flat('start/state', gathered(state))
  if read:  # arrays without a number in them
    state, nothing = trainer.run(state, resident, 0)
    seen |= flat('start/metrics', nothing)
  for half in ('middle', 'end'):
    state, metrics = trainer.run(state, data, HALF)
    seen |= flat(f'{half}/state', gathered(state))
    seen |= flat(f'{half}/metrics', metrics)
    if half == 'middle' and directory is not None:
      trainer.save(directory, state, notes={'row': name})
  check_own_rows(state)
  check_traced(state.mesh)
  if read:
    seen |= readings(trainer, state, examples)
  if directory is not None:
    batches = pr.shared(examples, batch_size=1)
    again = make_trainer(moments).average(state, reestimate=batches)
    seen |= flat('mean/reestimated', again)
    rest = stream(arrays, HALF) if streamed else resident
    check_resumed(trainer, directory, point, rest, seen)
  return seen


def readings(trainer, state, examples):
  """What a trainer says of a state."""
  options = {'batch_size': EVAL_BATCH}
  each = trainer.evaluate_replicas(state, examples, **options)
  return {
    **flat('end/each', each),
    **flat('mean/evaluate', trainer.evaluate(state, examples, **options)),
    **flat('mean/average', trainer.average(state)),
    **flat('ledger/account', tuple(trainer.account(state, T))),
    **flat('ledger/spent', tuple(trainer.spent(state))),
  }


def check_own_rows(state):
  """Raise AssertionError unless a process holds its own replicas."""
  mesh, params = state.mesh, state.on_devices.params
  own = mesh.rows(params)['b']
  replicas = mesh.local_replicas
  np.testing.assert_array_equal(own, mesh.gather(params)['b'][replicas])


def check_traced(mesh):
  """Raise AssertionError unless a traced function has all devices."""
  gather = mesh.map(lambda x: lax.all_gather(x, AXIS_NAME))
  found = jax.eval_shape(gather, mesh.replicate(np.zeros(3)))
  shape = (len(mesh.local_devices), mesh.num_devices, 3)
  np.testing.assert_equal(found.shape, shape)


def check_resumed(trainer, directory, point, data, seen):
  """Raise AssertionError unless a restored run ends as the whole one."""
  state = trainer.restore(directory, trainer.init(*point, seed=4))
  check_equal(flat('middle/state', gathered(state)), seen)
  state, metrics = trainer.run(state, data, HALF)
  check_equal(flat('end/state', gathered(state)), seen)
  check_equal(flat('end/metrics', metrics), seen)


def check_equal(restored, seen):
  for name, x in restored.items():
    np.testing.assert_array_equal(x, seen[name], name)
