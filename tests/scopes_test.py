"""SCOPES: `algorithm`, stages under names of their own."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests.stage_harness import (
  N,
  run,
)

SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), jnp.float32))


class AlgorithmTest(parameterized.TestCase):
  """Names are local, as in a function."""

  SLOW = staticmethod(
    lambda local: pr.algorithm(
      'slow',
      pr.remember(x0='params', u=pr.zeros),
      local,
      pr.at(
        pr.schedules.every(2),
        pr.let(
          u=lambda u, x0, params: 0.5 * u + params - x0,
          x0=lambda x0, u: x0 + u,
          params='x0',
        ),
      ),
    )
  )

  def test_a_local_step_with_a_register_of_the_same_name(self):
    local = pr.algorithm(
      'local',
      pr.gradient(),
      pr.local_update(optax.sgd(0.1), into='u'),
      pr.let(params=lambda params, u: params + u),
    )
    one = run(self.SLOW(local), num_steps=6)[0]
    other = run(self.SLOW(pr.step(optax.sgd(0.1))), num_steps=6)[0]
    np.testing.assert_array_equal(one, other)

  def test_a_chain_shares_its_names(self):
    # The twin: without names of its own the local step assigns SlowMo's u.
    local = pr.chain(
      pr.gradient(),
      pr.local_update(optax.sgd(0.1), into='u'),
      pr.let(params=lambda params, u: params + u),
    )
    one = run(self.SLOW(local), num_steps=6)[0]
    other = run(self.SLOW(pr.step(optax.sgd(0.1))), num_steps=6)[0]
    self.assertGreater(np.abs(one - other).max(), 1e-3)

  def test_registers_of_the_state_have_the_names_of_both(self):
    algorithm = pr.algorithm('outer', self.SLOW(pr.step(optax.sgd(0.1))))
    state = pr.engine.create_train_state(
      pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3, np.float32)
    )
    self.assertEqual(set(state.registers), {'outer.slow.x0', 'outer.slow.u'})

  def test_what_it_only_reads_may_be_of_the_stages_around(self):
    pull = pr.algorithm(
      'pull', pr.let(params=lambda params, x0: params + 0.5 * (x0 - params))
    )
    params, *_, g = run(
      pr.remember(x0=lambda params: params + 1),
      pr.step(optax.sgd(0.1)),
      pull,
      num_steps=1,
    )
    np.testing.assert_allclose(params, 0.5 * (1 - 0.1 * g[0]), rtol=1e-5)

  def test_an_output_does_not_leave_with_its_names(self):
    algorithm = pr.chain(
      pr.remember(u=lambda params: params + 1),
      pr.algorithm('inside', pr.evaluate(u=2.0, params='u')),
      pr.evaluate(params=lambda params, u: params + u),
    )
    state = pr.engine.create_train_state(
      pr.engine.ReplicaMesh(N, 2), algorithm, np.zeros(3, np.float32)
    )
    params, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_array_equal(params, [3, 3, 3])

  @parameterized.parameters((pr.gradient(),), ('a name',), ('',), (None,))
  def test_has_a_name(self, name):
    with self.assertRaisesRegex(ValueError, 'expects a name such as'):
      pr.algorithm(name, pr.gradient())


if __name__ == '__main__':
  absltest.main()
