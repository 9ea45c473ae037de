"""Federated averages: drawn clients, weights, and special cases."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness
from tests.corrected_algorithms_test import TARGETS, fixed_point
from tests.rows import LEARNING_RATE, LOCAL_STEPS, PLAIN, SGD, TABLE, N, T
from tests.rows.federated import MEAN, MU, RESET, WEIGHTS, draws

PROBLEM = laws.PROBLEMS['smooth']
HALF = {'period': 3, 'participation': 0.5}
SOME = {'period': 4, 'participation': 3 / N}
ALL = pr.sync(pr.mixing.mean(), ('params', 'opt_state'))
SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))

ALGORITHMS = {
  'weights_alike': lambda: pr.fedavg(SGD, period=4, weights=[3.0] * N),
  'kept': lambda: pr.fedavg(SGD, period=4, average=MEAN),
  'all': lambda: pr.fedavg(SGD, period=4, average=ALL),
  'stage': lambda: pr.fedavg(pr.step(SGD), period=4),
  'server': lambda: pr.fedavg(
    SGD, period=4, average=MEAN, server=optax.sgd(0.7, momentum=0.9)
  ),
  'outer': lambda: pr.diloco(SGD, period=4, outer=optax.sgd(0.7, momentum=0.9)),
  'uncompressed': lambda: pr.fedavg(
    SGD,
    **SOME,
    weights=WEIGHTS,
    average=pr.chain(
      pr.stages.average_differences(pr.codecs.uncompressed()), pr.restart(SGD)
    ),
  ),
  'some': lambda: pr.fedavg(SGD, **SOME),
  'not_held': lambda: pr.fedprox(SGD, **SOME, mu=0.0),
  'each_step': lambda: pr.fedavg(SGD, period=1, participation=0.5),
  'held_each_step': lambda: pr.fedprox(SGD, period=1, participation=0.5, mu=MU),
  'normalized_alike': lambda: pr.fednova(SGD, local_steps=[4] * N),
}


@functools.cache
def trajectory(name):
  if name in TABLE:
    return laws.trajectory(name).x
  return harness.run_problem(ALGORITHMS[name](), PROBLEM).x


class IdentitiesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('fedavg_everyone', 'k_avg_reset_buffers'),
    ('weights_alike', 'k_avg_reset_buffers'),
    ('kept', 'k_avg_4'),
    ('stage', 'k_avg_4'),
    ('all', 'k_avg_averaged_buffers'),
    ('server', 'outer'),
    ('uncompressed', 'fedavg'),
    ('not_held', 'some'),
    ('held_each_step', 'each_step'),
    ('normalized_alike', 'k_avg_4'),
  )
  def test_special_case_collapses(self, special, general):
    laws.assert_close(trajectory(special), trajectory(general))

  @parameterized.parameters(
    ('fedavg_everyone', 'kept'),
    ('fedavg_weighted_everyone', 'fedavg_everyone'),
    ('fedavg', 'some'),
    ('fedavg', 'fedavg_codes'),
    ('fedprox', 'some'),
    ('fednova', 'heterogeneous'),
    ('fednova', 'fednova_restarted'),
  )
  def test_these_are_different_algorithms(self, one, other):
    self.assertGreater(np.abs(trajectory(one) - trajectory(other)).max(), 1e-3)

  def test_the_first_step_of_a_round_is_not_held(self):
    held, free = trajectory('fedprox'), trajectory('some')
    laws.assert_close(held[1], free[1])
    self.assertGreater(np.abs(held[2] - free[2]).max(), 1e-3)


class FedNovaTest(parameterized.TestCase):
  @parameterized.parameters(0.02, 0.002)
  def test_unequal_work_has_no_bias_as_the_learning_rate_falls(self, gamma):
    # PAPERS 2.vi: a round moves x towards e_i by 1 - (1 - gamma)^I_i.
    local_steps = (1, 3, 8)
    x, biased = (
      fixed_point(
        make(optax.sgd(gamma), local_steps=local_steps),
        int(96 / gamma),
        hessians=np.ones(3),
      )
      for make in (pr.fednova, pr.pr_sgd_heterogeneous)
    )
    moved = (1 - (1 - gamma) ** np.array(local_steps)) / local_steps
    self.assertAlmostEqual(x, moved @ TARGETS / moved.sum(), places=9)
    # To first order in gamma below the mean of e_i by gamma / 2 times the
    # covariance of I_i and e_i, which is 5.
    optimum = TARGETS.mean()
    self.assertAlmostEqual((optimum - x) / gamma, 2.5, delta=0.05)
    self.assertGreater(biased - optimum, 1.2)

  def test_momentum_is_normalized_where_the_gradient_is_constant(self):
    flat = PROBLEM._replace(
      hessian=np.zeros_like(PROBLEM.hessian),
      features=np.zeros_like(PROBLEM.features),
      noise=np.broadcast_to(PROBLEM.noise[0], PROBLEM.noise.shape),
    )
    options = {'local_steps': LOCAL_STEPS, 'average': RESET}
    momenta = np.cumsum(0.9 ** np.arange(max(LOCAL_STEPS)))
    a = np.cumsum(momenta)[np.array(LOCAL_STEPS) - 1]
    right, wrong = (
      harness.run_problem(pr.fednova(SGD, **options, **more), flat).x[8, 0]
      for more in ({'normalizers': a}, {})
    )
    mean = PROBLEM.noise[0].mean(axis=0)
    want = PROBLEM.start - LEARNING_RATE * a.mean() * mean
    laws.assert_close(right, want)
    self.assertGreater(np.abs(wrong - want).max(), 1e-2)


class DrawsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.01, 1), (0.125, 1), (0.3, 2), (0.5, 4), (0.95, 8)
  )
  def test_so_many_are_drawn_for_whole_rounds(self, participation, count):
    worked = self.expected(T, period=3, participation=participation)
    np.testing.assert_array_equal(worked.sum(axis=1), np.full(T, count))
    by_round = worked.reshape(T // 3, 3, N)
    np.testing.assert_array_equal(by_round, by_round[:, :1].repeat(3, axis=1))

  @parameterized.product(
    period=(3, pr.schedules.intervals([2, 5, 4])), num_devices=(1, 2, 8)
  )
  def test_the_ledger_knows_who_works(self, period, num_devices):
    algorithm = pr.fedavg(PLAIN, period=period, participation=0.5)
    run = harness.run_problem(algorithm, PROBLEM, num_devices)
    worked = self.expected(T, period=period, participation=0.5)
    np.testing.assert_array_equal(run.metrics['active'] == 1, worked)
    np.testing.assert_array_equal(run.metrics['loss'] != 0, worked)
    begin = range(0, T, 3) if period == 3 else range(7, T, 4)
    for step, drawn in zip(begin, draws(begin, 4), strict=True):
      self.assertEqual(np.flatnonzero(worked[step]).tolist(), drawn)

  def test_the_seed_of_the_draws_decides_alone(self):
    one, other = (self.expected(T, **HALF, draw_seed=seed) for seed in (0, 1))
    self.assertTrue((one != other).any())
    for seed in (0, 1):
      run = harness.run_problem(pr.fedavg(PLAIN, **HALF), PROBLEM, seed=seed)
      np.testing.assert_array_equal(run.metrics['active'], one)

  def test_every_subset_is_as_likely(self):
    # 28 pairs, 2800 draws: chi-squared of 27 degrees is below 55 (p = 0.001).
    drawn = self.expected(2800, period=1, participation=0.25)
    np.testing.assert_array_equal(drawn.sum(axis=1), 2)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    self.assertLen(counts, 28)
    self.assertLess(((counts - 100.0) ** 2 / 100).sum(), 55)

  def test_work_is_a_function_of_the_step(self):
    algorithm = pr.fedavg(PLAIN, period=3, participation=0.25)
    whole = self.expected(T, period=3, participation=0.25)
    (part, _) = algorithm.cost(SHAPES, N, np.array([17, 4]))
    np.testing.assert_array_equal(part.active, whole[[17, 4]])
    (none, _) = algorithm.cost(SHAPES, N, np.arange(0))
    self.assertEqual(none.active.shape, (0, N))

  def expected(self, num_steps, **options):
    work, _ = pr.fedavg(PLAIN, **options).cost(SHAPES, N, np.arange(num_steps))
    return work.active


class FedAvgTest(parameterized.TestCase):
  @parameterized.parameters(1, 8)
  def test_the_others_keep_all_they_have(self, num_devices):
    run = harness.run_problem(
      pr.fedavg(SGD, **HALF, average=pr.chain()),
      PROBLEM._replace(noise=PROBLEM.noise[:3]),
      num_devices,
    )
    worked = run.metrics['active'][0] == 1
    moved = (run.x[-1] != run.x[0]).any(axis=1)
    np.testing.assert_array_equal(moved, worked)
    trace = harness.to_vector(run.mesh.gather(run.state.opt_state[0].trace))
    np.testing.assert_array_equal((trace != 0).any(axis=1), worked)

  def test_alone_on_its_device_a_replica_that_rests_computes_nothing(self):
    engine = harness.make_engine(pr.fedavg(SGD, **HALF), N, N)
    start = jax.tree.map(np.float32, harness.to_tree(PROBLEM.start))
    state = pr.engine.create_train_state(engine.mesh, engine.algorithm, start)
    batch = harness.problem_batches(engine.mesh, PROBLEM, [0], np.float32)
    jaxpr = jax.make_jaxpr(engine.train_steps)(state, batch)
    products = [
      conditional
      for eqn, conditional in harness.equations(jaxpr.jaxpr)
      if eqn.primitive.name == 'dot_general'
    ]
    self.assertNotEmpty(products)
    self.assertTrue(all(products))

  def test_half_precision_is_weighed_in_single(self):
    algorithm = pr.fedavg(SGD, **HALF, server=optax.sgd(1.0))
    start = {'b': np.zeros(2, jnp.bfloat16), 'w': np.ones((2, 2), jnp.float32)}
    state = jax.eval_shape(
      lambda: pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), algorithm, start
      )
    )
    registers = state.registers
    self.assertEqual(registers['weight'].dtype, jnp.float32)
    self.assertEqual(registers['fedavg.x0']['b'].dtype, jnp.float32)
    self.assertEqual(state.params['b'].dtype, jnp.bfloat16)

  def test_server_may_be_any_optax_optimizer(self):
    for server in (optax.adam(0.1), optax.adagrad(0.1)):
      algorithm = pr.fedavg(SGD, period=4, participation=0.5, server=server)
      x = harness.run_problem(algorithm, PROBLEM).x
      np.testing.assert_array_equal(x[8], np.broadcast_to(x[8, 0], x[8].shape))
      self.assertTrue(np.isfinite(x).all())
      self.assertGreater(np.abs(x[-1] - x[0]).max(), 1e-2)

  @parameterized.parameters(
    ({}, 48),
    # Four bytes for the weight of each replica.
    ({'participation': 0.5}, 52),
    ({'weights': WEIGHTS}, 52),
    ({'average': ALL}, 96),
  )
  def test_a_round_is_one_all_reduce(self, options, payload):
    params = {'b': np.zeros(4, np.float32), 'w': np.zeros(8, np.float32)}
    algorithm = pr.fedavg(SGD, period=4, **options)
    state = harness.state_types(pr.engine.ReplicaMesh(N), algorithm, params)
    spent = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, T)
    self.assertEqual(spent.rounds[-1], 6)
    self.assertAlmostEqual(spent.bytes_sent[-1], 6 * 2 * (N - 1) / N * payload)

  @parameterized.parameters(
    ({}, []),
    ({'participation': 0.5}, ['weight']),
    ({'server': SGD}, ['fedavg.x0']),
    (
      {'average': pr.stages.average_differences(pr.codecs.signs())},
      ['fedavg.x0'],
    ),
  )
  def test_declares_only_what_is_read(self, options, registers):
    algorithm = pr.fedavg(SGD, period=4, **options)
    state = jax.eval_shape(
      lambda: pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )
    )
    self.assertEqual(sorted(state.registers), registers)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, -1, 2.0, True, '4')
  def test_periods_are_positive_integers(self, bad):
    message = rf'period must be an integer >= 1, got {bad!r}'
    with self.assertRaisesRegex(ValueError, message):
      pr.fedavg(SGD, period=bad)
    with self.assertRaisesRegex(ValueError, message):
      pr.fedprox(SGD, period=bad, mu=0.1)

  @parameterized.parameters(0, 1.1, -0.5, None, True, float('nan'))
  def test_participation_is_a_fraction(self, bad):
    with self.assertRaisesRegex(
      ValueError, rf'participation must be in \(0, 1\], got {bad}'
    ):
      pr.fedavg(SGD, period=2, participation=bad)

  @parameterized.parameters(-0.1, float('inf'), float('nan'), None)
  def test_mu_is_not_negative(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'mu must be >= 0 and finite, got {bad}'
    ):
      pr.fedprox(SGD, period=2, mu=bad)

  @parameterized.parameters(
    (([1.0, 0.0],),), (([1.0, float('nan')],),), (([[1.0]],),)
  )
  def test_weights_and_normalizers_are_positive(self, bad):
    with self.assertRaisesRegex(ValueError, 'weights must be numbers > 0, got'):
      pr.fedavg(SGD, period=2, weights=bad[0])
    with self.assertRaisesRegex(
      ValueError, 'normalizers must be numbers > 0, got'
    ):
      pr.fednova(SGD, local_steps=[1, 2], normalizers=bad[0])

  @parameterized.parameters(
    lambda: pr.fedavg(SGD, period=2, weights=[1.0, 2.0]),
    lambda: pr.fedavg(SGD, period=2, participation=0.5, weights=[1.0, 2.0]),
    lambda: pr.fednova(SGD, local_steps=[1, 2]),
    lambda: pr.fednova(SGD, local_steps=LOCAL_STEPS, normalizers=[1.0, 2.0]),
  )
  def test_there_is_one_number_for_each_replica(self, make):
    with self.assertRaisesRegex(ValueError, 'each of the 8 replicas, got 2'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(8), make(), np.zeros(2)
      )

  @parameterized.parameters(
    (lambda: pr.fedavg(0.1, period=2), 'a local step is'),
    (lambda: pr.fedprox(0.1, period=2, mu=1.0), 'expects an optax'),
    (lambda: pr.fedavg(SGD, period=2, server=0.7), 'expects an optax'),
    (
      lambda: pr.fedavg(SGD, period=2, average=pr.mixing.mean()),
      'expects stages',
    ),
    (lambda: pr.fedavg(SGD, period=2, draw_seed=-1), 'draw_seed must be'),
    (lambda: pr.fednova(SGD, local_steps=[0, 1]), 'local_steps must be'),
    (
      lambda: pr.fedavg(pr.k_avg(SGD, period=2), **HALF),
      'stages that do not communicate',
    ),
  )
  def test_arguments_are_what_they_should_be(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
