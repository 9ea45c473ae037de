"""The program of every row of the table, traced once and never compiled.

With one replica per device, the ledger counts the bytes of its collectives.
"""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import signature
from tests.rows import TABLE, N

PROBLEM = reference.make_problem(N, 1)


@functools.cache
def traced(name):
  """Trace a step: (state, its program, (state, metrics) after), types only."""
  algorithm = TABLE[name].make()
  mesh = pr.engine.ReplicaMesh(N, N)
  start = harness.to_tree(PROBLEM.start)
  start = {
    'b': start['b'].astype(np.float32),
    'w': start['w'].astype(jnp.bfloat16),
  }
  state = harness.state_types(mesh, algorithm, start)
  batch = harness.problem_batches(mesh, PROBLEM, [0], np.float32)
  train_steps = pr.engine.make_train_steps(
    mesh, algorithm, harness.problem_loss
  )
  program, after = jax.make_jaxpr(train_steps, return_shape=True)(state, batch)
  return state, program, after


def program_bytes(jaxpr):
  """Bytes that one replica sends in a program at V = 1, by the convention.

  Of a conditional the branch that communicates counts, and of graphs that take
  turns the mean.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'cond':
      sent = [program_bytes(b.jaxpr) for b in eqn.params['branches']]
      total += np.mean(sent) if all(sent) else max(sent)
      continue
    total += sent_bytes(eqn)
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          total += program_bytes(inner)
  return total


def sent_bytes(eqn):
  """The convention of the ledger, from a collective and its operands."""
  payload = sum(
    v.aval.size * v.aval.dtype.itemsize
    for v in eqn.invars
    if hasattr(v.aval, 'size')
  )
  groups = eqn.params.get('axis_index_groups')
  size = len(groups[0]) if groups else N
  if eqn.primitive.name.startswith(('psum', 'pmean')):
    return 2 * (size - 1) / size * payload
  if eqn.primitive.name.startswith('all_gather'):
    return (size - 1) * payload
  return payload if eqn.primitive.name == 'ppermute' else 0.0


class EveryProgramTest(parameterized.TestCase):
  @parameterized.parameters(*TABLE)
  def test_a_step_keeps_the_types_of_the_state(self, name):
    state, _, (after, metrics) = traced(name)
    self.assertEqual(signature(after), signature(state))
    self.assertEqual(metrics['loss'].shape, (N, 1, 1))
    self.assertEqual(state.params['b'].dtype, jnp.float32)
    self.assertEqual(state.params['w'].dtype, jnp.bfloat16)

  @parameterized.parameters(*TABLE)
  def test_the_ledger_has_its_bytes(self, name):
    # The program has each round once, however often its conditional is taken.
    state, program, _ = traced(name)
    shapes = pr.engine.replica_shapes(state)
    costs = TABLE[name].make().cost(shapes, N, np.arange(1))
    sent = sum(c.bytes_sent for c in costs if isinstance(c, pr.base.Traffic))
    # The program has all matchings, and the ledger the expected half.
    share = 0.5 if name == 'd_psgd_matcha' else 1.0
    found = program_bytes(program.jaxpr) * share
    if name.startswith('faults_') and name != 'faults_none':
      # The simulation also sends who is present, which hosts know.
      self.assertGreater(found, sent)
    else:
      self.assertAlmostEqual(found, sent)


if __name__ == '__main__':
  absltest.main()
