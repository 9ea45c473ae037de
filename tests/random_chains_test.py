"""Laws of random chains, on random trees, layouts and numbers of replicas."""

import operator

from absl.testing import absltest
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import fuzzing, harness
from tests.random_chains import (
  SEEN,
  Case,
  Let,
  Local,
  Sync,
  build,
  bytes_sent,
  cases,
  decides,
  interpret,
  make_problem,
)

T = 5


def loss(params, model_state, batch, key):
  del key
  a, b, noise = batch
  terms = jax.tree.map(
    lambda x, a, b, e: (a * jnp.square(x - b) / 2 + e * x).sum(),
    params,
    a,
    b,
    noise,
  )
  return sum(jax.tree.leaves(terms)), (model_state, {})


def run(case, problem, num_devices, split=0):
  """(registers after each step, algorithm, state at the end).

  After `split` steps the state goes to the host and back.
  """
  mesh = pr.engine.ReplicaMesh(case.num_replicas, num_devices)
  algorithm = build(case)
  state = pr.engine.create_train_state(mesh, algorithm, problem.start)
  train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
  blocks = (mesh.num_devices, 1, mesh.block_size)
  seen = []
  for step in range(T):
    if step == split:
      state = harness.from_host(mesh, harness.to_host(state))
    noise = jax.tree.map(operator.itemgetter(step), problem.noise)
    batch = jax.tree.map(
      lambda x: x.reshape((*blocks, *x.shape[1:])),
      (problem.a, problem.b, noise),
    )
    state, _ = train_steps(state, mesh.place_per_device(batch))
    held = {'params': state.params, **state.registers}
    seen.append({n: jax.tree.leaves(mesh.gather(held[n])) for n in SEEN})
  return seen, algorithm, state


def assert_same(found, wanted, tolerance):
  for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
    for name in other:
      for x, y in zip(one[name], other[name], strict=True):
        np.testing.assert_allclose(
          x, y, rtol=tolerance, atol=tolerance, err_msg=f'{name}, step {step}'
        )


class RandomChainsTest(absltest.TestCase):
  @fuzzing.search(examples=12)
  @hypothesis.given(cases(), st.data())
  def test_laws(self, case, data):
    divisors = [d for d in range(1, 9) if case.num_replicas % d == 0]
    one = data.draw(st.sampled_from(divisors), 'D')
    other = data.draw(st.sampled_from(divisors), 'another D')
    split = data.draw(st.integers(1, T - 1), 'carried over the host after')
    problem = make_problem(case, T)
    wanted, machine = interpret(case, problem, T)
    with jax.enable_x64(True):
      found, algorithm, state = run(case, problem, one)
      assert_same(found, wanted, 1e-12)
      if other != one:
        again, *_ = run(case, problem, other, split)
        assert_same(again, found, 1e-13)
      else:
        again, *_ = run(case, problem, other, split)
        assert_same(again, found, 0)
      self.check_cost(case, algorithm, state, machine)
      mean, _ = pr.engine.consensus(algorithm, state)
      assert_same(
        [{'mean': jax.tree.leaves(mean)}],
        [{'mean': [x.mean(axis=0) for x in wanted[-1]['params']]}],
        1e-12,
      )

  def check_cost(self, case, algorithm, state, machine):
    n = case.num_replicas
    account = pr.ledger.account(
      algorithm, pr.engine.replica_shapes(state), n, T
    )
    self.assertEqual(account.gradients[-1], machine.gradients)
    if decides(case.body):
      return  # of which the ledger knows after the run
    sent = [bytes_sent(mixing, size, n) for mixing, size in machine.sent]
    self.assertEqual(account.rounds[-1], sum(x > 0 for x in sent))
    np.testing.assert_allclose(account.bytes_sent[-1], sum(sent), rtol=1e-12)

  def test_the_interpreter_tells_chains_apart(self):
    """The negative twin: an average one stage later is another algorithm."""
    local, mean = Local(0.3, 0.5), Sync(('mean', None), ('params',))
    half = Let('params', 0.5, 'params', 'grads')
    before = Case((local, mean, half), 2, [2], None, 0)
    after = before._replace(body=(local, half, mean))
    problem = make_problem(before, T)
    with jax.enable_x64(True):
      found, *_ = run(before, problem, 1)
    assert_same(found, interpret(before, problem, T)[0], 1e-12)
    with self.assertRaises(AssertionError):
      assert_same(found, interpret(after, problem, T)[0], 1e-3)


if __name__ == '__main__':
  absltest.main()
