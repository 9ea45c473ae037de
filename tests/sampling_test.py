"""`while_sampled`: who works in a round, and what counts of it."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N, T, PERIOD = 8, 24, 3
PROBLEM = reference.make_problem(N, T)
SGD = optax.sgd(0.05, momentum=0.9)


def sampled(**options):
  return pr.while_sampled(
    pr.gradient(), pr.local_update(SGD), period=PERIOD, **options
  )


def draws(num_steps=T, seed=0, **options):
  """Whom the stage draws, bool[num_steps, N], without any work."""
  mesh = pr.ReplicaMesh(N, 2)
  idle = pr.ReplicaTransformation(lambda r, s, c: (r, s))
  algorithm = pr.while_sampled(idle, **{'period': PERIOD, **options})
  state = pr.create_train_state(mesh, algorithm, np.zeros(1, np.float32))

  def run(state):
    def step(state, _):
      key = jax.random.fold_in(jax.random.key(seed), state.step)
      context = harness.bare_context(mesh)._replace(
        step=state.step, shared_key=key
      )
      replica, after = algorithm.update(
        state.replica(), state.algorithm_state, context
      )
      return state.advance(replica, after), after.share

    return jax.lax.scan(step, state, length=num_steps)[1]

  share = np.asarray(mesh.map(run)(state))  # [D, num_steps, V]
  return np.moveaxis(share > 0, 0, 1).reshape(num_steps, N)


class WhileSampledTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.01, 1), (0.125, 1), (0.3, 2), (0.5, 4), (0.95, 8), (1.0, 8), (1, 8)
  )
  def test_so_many_are_drawn(self, participation, count):
    worked = draws(participation=participation)
    np.testing.assert_array_equal(worked.sum(axis=1), np.full(T, count))

  def test_the_draw_stays_for_a_round_and_changes_with_it(self):
    rounds = draws(participation=0.5).reshape(T // PERIOD, PERIOD, N)
    np.testing.assert_array_equal(rounds, rounds[:, :1].repeat(PERIOD, axis=1))
    self.assertGreater(len(np.unique(rounds[:, 0], axis=0)), 4)

  def test_another_seed_draws_others(self):
    one, other = (draws(seed=seed, participation=0.5) for seed in (0, 1))
    self.assertTrue((one != other).any())

  def test_every_subset_is_as_likely(self):
    # 28 pairs, 2800 draws: chi-squared of 27 degrees is below 55 (p = 0.001).
    drawn = draws(2800, period=1, participation=0.25)
    np.testing.assert_array_equal(drawn.sum(axis=1), 2)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    self.assertLen(counts, 28)
    self.assertLess(((counts - 100.0) ** 2 / 100).sum(), 55)

  @parameterized.parameters(1, 8)
  def test_the_others_keep_all_they_have(self, num_devices):
    run = harness.run_problem(
      sampled(participation=0.5, what=()),
      PROBLEM._replace(noise=PROBLEM.noise[:PERIOD]),
      num_devices,
    )
    worked = run.metrics['active'][0] == 1
    moved = (run.x[-1] != run.x[0]).any(axis=1)
    np.testing.assert_array_equal(moved, worked)
    trace = harness.to_vector(run.mesh.gather(run.state.opt_state[0].trace))
    np.testing.assert_array_equal((trace != 0).any(axis=1), worked)
    np.testing.assert_array_equal(run.metrics['loss'] != 0, [worked] * PERIOD)

  @parameterized.parameters(None, ((1.0, 9.0, 2.0, 4.0, 3.0, 7.0, 0.5, 2.5),))
  def test_the_mean_of_what_is_left_is_the_weighted_mean(self, weights):
    options = {'participation': 0.5, 'weights': weights}
    short = PROBLEM._replace(noise=PROBLEM.noise[:PERIOD])
    x = harness.run_problem(sampled(**options, what=()), short)
    scaled = harness.run_problem(sampled(**options), short)
    worked = x.metrics['active'][0] == 1
    sizes = np.where(worked, np.ones(N) if weights is None else weights, 0)
    want = sizes @ x.x[-1] / sizes.sum()
    # Two programs, whose products and sums may be contracted otherwise.
    np.testing.assert_allclose(
      scaled.x[-1].mean(axis=0), want, rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(scaled.x[:-1], x.x[:-1], rtol=0, atol=1e-14)

  def test_what_may_be_one_name(self):
    short = PROBLEM._replace(noise=PROBLEM.noise[:PERIOD])
    one, many = (
      harness.run_problem(sampled(participation=0.5, what=what), short).x
      for what in ('params', ('params',))
    )
    np.testing.assert_array_equal(one, many)

  def test_alone_on_its_device_a_replica_that_rests_computes_nothing(self):
    algorithm = sampled(participation=0.5)
    engine = harness.make_engine(algorithm, N, N)
    start = jax.tree.map(np.float32, harness.to_tree(PROBLEM.start))
    state = pr.create_train_state(engine.mesh, algorithm, start)
    batch = harness.problem_batches(engine.mesh, PROBLEM, [0], np.float32)
    jaxpr = jax.make_jaxpr(engine.train_steps)(state, batch)
    products = [
      conditional
      for eqn, conditional in harness.equations(jaxpr.jaxpr)
      if eqn.primitive.name == 'dot_general'
    ]
    self.assertNotEmpty(products)
    self.assertTrue(all(products))

  def test_half_precision_keeps_its_type(self):
    mesh = pr.ReplicaMesh(N, 2)
    algorithm = sampled(participation=0.5)
    start = {'b': np.zeros(2, jnp.bfloat16), 'w': np.ones((2, 2), jnp.float32)}
    state = jax.eval_shape(
      lambda: pr.create_train_state(mesh, algorithm, start)
    )
    batch = harness.problem_batches(mesh, PROBLEM, [0], np.float32)
    train_steps = pr.make_train_steps(mesh, algorithm, harness.problem_loss)
    after, _ = jax.eval_shape(train_steps, state, batch)
    self.assertEqual(after.params['b'].dtype, jnp.bfloat16)
    self.assertEqual(after.algorithm_state.share.dtype, jnp.float32)


class CostTest(parameterized.TestCase):
  SHAPES = pr.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))

  def test_work_is_of_as_many_for_whole_rounds(self):
    (work,) = sampled(participation=0.25).cost(self.SHAPES, N, np.arange(T))
    np.testing.assert_array_equal(work.active.sum(axis=1), np.full(T, 2))
    rounds = work.active.reshape(T // PERIOD, PERIOD, N)
    np.testing.assert_array_equal(rounds, rounds[:, :1].repeat(PERIOD, axis=1))
    self.assertGreater(len(np.unique(rounds[:, 0], axis=0)), 4)

  def test_work_is_a_function_of_the_step(self):
    stage = sampled(participation=0.25)
    (whole,) = stage.cost(self.SHAPES, N, np.arange(T))
    (part,) = stage.cost(self.SHAPES, N, np.array([17, 4]))
    np.testing.assert_array_equal(part.active, whole.active[[17, 4]])
    (none,) = stage.cost(self.SHAPES, N, np.arange(0))
    self.assertEqual(none.active.shape, (0, N))

  def test_all_work_equally_often_in_the_long_run(self):
    stage = sampled(participation=0.25)
    (work,) = stage.cost(self.SHAPES, N, np.arange(3 * 2000))
    # 2000 draws of probability 1/4: five standard deviations are 0.05.
    np.testing.assert_allclose(work.active.mean(axis=0), 0.25, atol=0.05)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1.1, -0.5, None, True, float('nan'))
  def test_participation_is_a_fraction(self, bad):
    with self.assertRaisesRegex(
      ValueError, rf'participation must be in \(0, 1\], got {bad}'
    ):
      sampled(participation=bad)

  @parameterized.parameters(
    (([1.0, 0.0],),), (([1.0, float('nan')],),), (([[1.0]],),)
  )
  def test_weights_are_positive(self, bad):
    with self.assertRaisesRegex(ValueError, 'weights must be numbers > 0, got'):
      sampled(weights=bad[0])

  def test_a_weight_for_each_replica(self):
    with self.assertRaisesRegex(ValueError, 'each of the 8 replicas, got 2'):
      pr.create_train_state(
        pr.ReplicaMesh(8), sampled(weights=[1.0, 2.0]), np.zeros(2)
      )

  def test_stages_do_not_communicate(self):
    stage = pr.while_sampled(
      pr.gradient(), pr.local_update(SGD), pr.sync(pr.mean()), period=2
    )
    with self.assertRaisesRegex(ValueError, 'chain sync after while_sampled'):
      pr.create_train_state(pr.ReplicaMesh(8), stage, np.zeros(2))


if __name__ == '__main__':
  absltest.main()
