"""Corrected and weighted averages: identities, fixed points, outputs."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness, reference
from tests.rows import LEARNING_RATE, LOCAL_STEPS, PLAIN, SGD, N, T
from tests.rows.corrected import NATURAL

SMOOTH = laws.PROBLEMS['smooth']


def points(algorithm, problem=SMOOTH, num_devices=2):
  """x[T, N, d] after each step."""
  return harness.run_problem(algorithm, problem, num_devices).x[1:]


# f_i(x) = h_i (x - e_i)^2 / 2, whose mean is least at h . e / sum h.
HESSIANS, TARGETS = np.array([1.0, 2, 4]), np.array([0.0, 1, 4])


def _quadratic(params, model_state, data, key):
  del key
  hessian, target = data
  return 0.5 * hessian * (params - target) ** 2, (model_state, {})


def fixed_point(
  algorithm, num_steps, num_devices=1, hessians=HESSIANS, targets=TARGETS
):
  """x of three replicas after many steps with exact gradients."""
  with jax.enable_x64(True):
    mesh = pr.engine.ReplicaMesh(3, num_devices)
    state = pr.engine.create_train_state(mesh, algorithm, np.float64(2.0))
    train_steps = pr.engine.make_resident_train_steps(
      mesh,
      algorithm,
      _quadratic,
      lambda data, step, replica, key: jax.tree.map(lambda x: x[replica], data),
    )
    data = mesh.replicate((hessians, targets))
    state, _ = train_steps(state, data, num_steps)
    x = mesh.gather(state.params)
  np.testing.assert_array_equal(x, x[0])
  return float(x[0])


class ScaffoldTest(parameterized.TestCase):
  def test_like_losses_without_noise_are_k_avg(self):
    # Every c_i is the c of all, and corrects nothing.
    alike = SMOOTH._replace(
      hessian=np.broadcast_to(SMOOTH.hessian[0], SMOOTH.hessian.shape),
      target=np.broadcast_to(SMOOTH.target[0], SMOOTH.target.shape),
      features=np.broadcast_to(SMOOTH.features[0], SMOOTH.features.shape),
      noise=np.zeros_like(SMOOTH.noise),
    )
    laws.assert_close(
      points(pr.scaffold(PLAIN, period=4, learning_rate=0.05), alike),
      points(pr.k_avg(PLAIN, period=4), alike),
    )

  def test_one_local_step_is_synchronous_sgd(self):
    # The corrections of all replicas add up to zero.
    laws.assert_close(
      laws.trajectory('scaffold_1').x, laws.trajectory('ssgd_plain').x
    )

  def test_more_local_steps_are_not_k_avg(self):
    x = points(pr.scaffold(PLAIN, period=4, learning_rate=LEARNING_RATE))
    difference = x - points(pr.k_avg(PLAIN, period=4))
    self.assertGreater(np.abs(difference).max(), 1e-3)

  @parameterized.product(momentum=(0.0, 0.9), num_devices=(1, 3))
  def test_finds_the_optimum_where_local_sgd_does_not(
    self, momentum, num_devices
  ):
    gamma, period = 0.02, 8
    tx = optax.sgd(gamma, momentum=momentum or None)
    algorithm = pr.scaffold(tx, period=period, learning_rate=gamma)
    optimum = HESSIANS @ TARGETS / HESSIANS.sum()
    x = fixed_point(algorithm, 200 * period, num_devices)
    self.assertAlmostEqual(x, optimum, places=10)
    biased = fixed_point(pr.k_avg(tx, period=period), 200 * period)
    self.assertGreater(abs(biased - optimum), 0.05)
    if not momentum:
      weights = 1 - (1 - gamma * HESSIANS) ** period
      want = weights @ TARGETS / weights.sum()
      self.assertAlmostEqual(biased, want, places=10)

  def test_a_constant_learning_rate_is_a_unit_only(self):
    one, other = (
      points(pr.scaffold(SGD, period=4, learning_rate=gamma))
      for gamma in (LEARNING_RATE, 3.0)
    )
    laws.assert_close(one, other)

  @parameterized.parameters(1, 4)
  def test_a_schedule_is_summed_over_the_round(self, period):
    def schedule(step):
      return LEARNING_RATE / (1.0 + step)

    algorithm = pr.scaffold(
      optax.sgd(schedule), period=period, learning_rate=schedule
    )
    oracle = reference.scaffold(SMOOTH, period=period, learning_rate=schedule)
    laws.assert_close(points(algorithm), oracle[1:])

  def test_a_round_of_learning_rate_zero_changes_nothing(self):
    def warm_up(step):
      return 0.01 * jnp.minimum(step, 3)

    x = points(pr.scaffold(optax.sgd(warm_up), period=1, learning_rate=warm_up))
    np.testing.assert_array_equal(x[0], np.tile(SMOOTH.start, (N, 1)))
    laws.assert_close(x, points(pr.ssgd(optax.sgd(warm_up))))

  @parameterized.parameters(1, 2, 4)
  def test_half_precision_has_controls_in_single(self, num_devices):
    mesh = pr.engine.ReplicaMesh(4, num_devices)
    algorithm = pr.scaffold(optax.sgd(0.1), period=2, learning_rate=0.1)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, jnp.bfloat16)
    )
    train_steps = pr.engine.make_resident_train_steps(
      mesh,
      algorithm,
      lambda p, s, target, key: (((p - target) ** 2).sum(), (s, {})),
      lambda data, step, replica, key: data[replica],
    )
    targets = np.arange(4, dtype=np.float32)
    state, _ = train_steps(state, mesh.replicate(targets), 60)
    for name in ('x0', 'ci', 'c'):
      register = state.registers[f'scaffold.{name}']
      self.assertEqual(register.dtype, jnp.float32)
    x = mesh.gather(state.params)
    self.assertEqual(x.dtype, jnp.bfloat16)
    np.testing.assert_allclose(x.astype(np.float32), 1.5, rtol=0.02)
    mean = mesh.gather(state.registers['scaffold.c'])
    np.testing.assert_array_equal(mean, np.broadcast_to(mean[0], mean.shape))

  def test_two_models_are_sent_once_a_round(self):
    mesh = pr.engine.ReplicaMesh(N, N)
    algorithm = pr.scaffold(PLAIN, period=4, learning_rate=0.05)
    state = harness.state_types(mesh, algorithm, np.zeros(5, np.float32))
    account = pr.ledger.account(
      algorithm, pr.engine.replica_shapes(state), N, 11
    )
    self.assertEqual(account.rounds[-1], 2)
    self.assertEqual(account.bytes_sent[-1], 2 * 2 * (2 * 7 / 8 * 5 * 4))

  def test_one_conditional_sends_parameters_and_controls(self):
    mesh = pr.engine.ReplicaMesh(N, N)
    algorithm = pr.scaffold(PLAIN, period=4, learning_rate=0.05)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(5, np.float32)
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda params, s, b, key: ((params * b).sum(), (s, {}))
    )
    batch = mesh.place_per_device(np.zeros((N, 1, 1), np.float32))
    sent = harness.collectives_of(train_steps, state, batch)
    self.assertTrue(all(one.conditional for one in sent))
    numbers = sum(x.size for one in sent for x in one.operands)
    self.assertEqual(numbers, 2 * 5)

  @parameterized.parameters(1, 4)
  def test_controls_are_the_mean_directions_of_the_round(self, num_devices):
    problem = reference.make_problem(4, 7)
    algorithm = pr.scaffold(SGD, period=3, learning_rate=LEARNING_RATE)
    run = harness.run_problem(algorithm, problem, num_devices)
    state = run.mesh.gather(run.state.registers)
    ci, c, x0 = (
      harness.to_vector(state[f'scaffold.{name}']) for name in ('ci', 'c', 'x0')
    )
    # Of the round of steps 3, 4, 5, whose controls are those of 0, 1, 2.
    length = 3 * LEARNING_RATE
    first = (run.x[0] - self.before_average(problem, run, 3)) / length
    second = (run.x[3] - self.before_average(problem, run, 6)) / length
    laws.assert_close(ci, second + first - first.mean(axis=0))
    laws.assert_close(c, np.tile(ci.mean(axis=0), (4, 1)))
    np.testing.assert_array_equal(c, np.tile(c[0], (4, 1)))
    np.testing.assert_array_equal(x0, run.x[6])
    np.testing.assert_allclose(
      state['scaffold.total'], np.full(4, LEARNING_RATE), rtol=1e-12
    )

  def before_average(self, problem, run, t):
    """y_i at the end of a round, by the gradients along the trajectory."""
    v, c = np.zeros_like(run.x[0]), np.zeros_like(run.x[0])
    for s in range(1, t + 1):
      g = [problem.gradient(i, run.x[s - 1, i], s) for i in range(4)]
      v = 0.9 * v + np.stack(g)
      y = run.x[s - 1] - LEARNING_RATE * (v - c + c.mean(axis=0))
      if s % 3 == 0 and s < t:
        moved = (run.x[s - 3] - y) / (3 * LEARNING_RATE)
        c = c - c.mean(axis=0) + moved
    return y

  def test_a_round_may_have_any_length(self):
    # Of one step each: the corrections of all replicas add up to zero.
    algorithm = pr.scaffold(
      PLAIN, period=pr.schedules.always(), learning_rate=LEARNING_RATE
    )
    laws.assert_close(points(algorithm), laws.trajectory('ssgd_plain').x[1:])


class WeightedAveragingTest(parameterized.TestCase):
  def test_equal_weights_are_k_avg(self):
    laws.assert_close(
      laws.trajectory('weighted_equally').x, laws.trajectory('k_avg_4').x
    )

  def test_one_step_finds_the_weighted_optimum(self):
    weights = np.array([5.0, 1, 2])
    algorithm = pr.weighted_averaging(optax.sgd(0.1), period=1, weights=weights)
    x = fixed_point(algorithm, 300)
    both = weights * HESSIANS
    self.assertAlmostEqual(x, both @ TARGETS / both.sum(), places=10)

  @parameterized.parameters(1, 3)
  def test_weights_undo_the_bias_of_unequal_work(self, num_devices):
    # PAPERS 2.vi: a plain mean weighs e_i by 1 - (1 - gamma)^I_i.
    gamma, local_steps = 0.2, (1, 3, 8)
    work = 1 - (1 - gamma) ** np.array(local_steps)

    def run(mixing):
      algorithm = pr.pr_sgd_heterogeneous(
        optax.sgd(gamma), local_steps=local_steps, average=pr.sync(mixing)
      )
      return fixed_point(algorithm, 480, num_devices, hessians=np.ones(3))

    self.assertAlmostEqual(run(pr.mixing.mean()), 2.51075, places=5)
    optimum = TARGETS.mean()
    self.assertAlmostEqual(
      run(pr.mixing.weighted_mean(1 / work)), optimum, places=10
    )

  def test_averages_what_it_is_told_to(self):
    algorithm = pr.weighted_averaging(
      SGD,
      period=4,
      weights=range(1, N + 1),
      average=lambda w: pr.sync(w, ('params', 'opt_state')),
    )
    trace = harness.run_problem(algorithm, SMOOTH).state.opt_state[0].trace
    for leaf in jax.tree.leaves(trace):
      rows = np.asarray(leaf).reshape((N, -1))
      np.testing.assert_array_equal(rows, np.tile(rows[0], (N, 1)))

  def test_resets_buffers(self):
    algorithm = pr.weighted_averaging(
      SGD,
      period=4,
      weights=range(1, N + 1),
      average=lambda w: pr.chain(pr.sync(w), pr.restart(SGD)),
    )
    trace = harness.run_problem(algorithm, SMOOTH).state.opt_state[0].trace
    for leaf in jax.tree.leaves(trace):
      np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


class WpSgdTest(parameterized.TestCase):
  def test_without_contraction_it_is_pr_sgd_heterogeneous(self):
    x = points(pr.wp_sgd(SGD, local_steps=LOCAL_STEPS, contraction=1.0))
    laws.assert_close(x, laws.trajectory('heterogeneous').x[1:])

  def test_every_replica_adds_as_much_to_the_bound(self):
    r = 0.9
    weights = pr.algorithms.delay_weights(LOCAL_STEPS, contraction=r)
    bound = weights * r ** np.array(LOCAL_STEPS)
    np.testing.assert_allclose(bound, bound[0], rtol=1e-14)
    self.assertAlmostEqual(weights.sum(), 1)

  def test_a_long_delay_is_no_overflow(self):
    weights = pr.algorithms.delay_weights([1, 10**6], contraction=0.5)
    np.testing.assert_array_equal(weights, [0, 1])

  def test_is_closer_than_the_plain_mean_where_losses_are_alike(self):
    local_steps, gamma = (1, 3, 8), 0.05

    def distance(algorithm):
      return abs(fixed_point(algorithm, 8, 1, np.ones(3), np.zeros(3)))

    tx = optax.sgd(gamma)
    weighted = distance(
      pr.wp_sgd(tx, local_steps=local_steps, contraction=1 - gamma)
    )
    plain = distance(pr.wp_sgd(tx, local_steps=local_steps, contraction=1.0))
    # From 2, after one round: both means of 2 (1 - gamma)^I_i.
    left = 2 * (1 - gamma) ** np.array(local_steps)
    self.assertAlmostEqual(plain, left.mean())
    self.assertAlmostEqual(weighted, 3 / (1 / left).sum())
    self.assertLess(weighted, plain)


class TailAveragingTest(parameterized.TestCase):
  START = 10

  @parameterized.product(num_steps=(3, 10, 11, T), num_devices=(1, 2, 8))
  def test_output_is_the_tail_over_time_and_replicas(
    self, num_steps, num_devices
  ):
    problem = SMOOTH._replace(noise=SMOOTH.noise[:num_steps])
    algorithm = pr.tail_averaging(SGD, start_step=self.START)
    run = harness.run_problem(algorithm, problem, num_devices)
    x = reference.independent_runs(
      problem, learning_rate=LEARNING_RATE, momentum=0.9
    )
    with jax.enable_x64(True):
      out, _ = pr.engine.consensus(algorithm, run.state)
    laws.assert_close(
      harness.to_vector(out), reference.tail_average(x, self.START)
    )

  def test_training_is_not_changed(self):
    plain = pr.step(SGD)
    np.testing.assert_array_equal(
      laws.trajectory('tail_averaging').x[1:], points(plain)
    )

  def test_evaluation_is_of_the_tail(self):
    algorithm = pr.tail_averaging(SGD, start_step=self.START)
    run = harness.run_problem(algorithm, SMOOTH)
    x = reference.independent_runs(
      SMOOTH, learning_rate=LEARNING_RATE, momentum=0.9
    )
    evaluate = pr.engine.make_evaluate(
      run.mesh,
      algorithm,
      lambda params, model_state, batch: {
        'sum': jnp.full(batch.shape, params['w'].sum() + params['b'].sum())
      },
    )
    with jax.enable_x64(True):
      examples = pr.engine.shard_examples(run.mesh, np.zeros(4), batch_size=2)
      values = evaluate(run.state, examples)
    want = reference.tail_average(x, self.START).sum()
    self.assertAlmostEqual(values['sum'], want, places=5)

  def test_sends_nothing(self):
    mesh = pr.engine.ReplicaMesh(N)
    algorithm = pr.tail_averaging(SGD, start_step=self.START)
    state = harness.state_types(mesh, algorithm, np.zeros(5, np.float32))
    account = pr.ledger.account(
      algorithm, pr.engine.replica_shapes(state), N, T
    )
    self.assertEqual(account.bytes_sent[-1], 0)


class NaturalGradientAveragingTest(parameterized.TestCase):
  def test_smoothed_away_it_is_k_avg(self):
    algorithm = pr.natural_gradient_averaging(
      SGD, period=4, smoothing=1e15, max_change=np.inf
    )
    laws.assert_close(points(algorithm), laws.trajectory('k_avg_4').x[1:])

  def test_the_preconditioner_and_the_cap_are_at_work_in_its_row(self):
    x = laws.trajectory('natural_gradient').x
    for other in ({'smoothing': 1e15}, {'max_change': np.inf}):
      keywords = {**NATURAL, **other}
      y = points(pr.natural_gradient_averaging(SGD, **keywords))
      self.assertGreater(np.abs(x[1:] - y).max(), 1e-2)

  def test_no_step_is_longer_than_the_cap(self):
    x = laws.trajectory('natural_gradient').x
    steps = np.linalg.norm(np.diff(x, axis=0), axis=-1)
    alone = np.arange(1, T + 1) % NATURAL['period'] != 0
    self.assertLessEqual(steps[alone].max(), NATURAL['max_change'] + 1e-12)
    self.assertGreater(steps[alone].max(), NATURAL['max_change'] - 1e-12)

  @parameterized.parameters(1, 4)
  def test_trains_in_half_precision(self, num_devices):
    mesh = pr.engine.ReplicaMesh(4, num_devices)
    algorithm = pr.natural_gradient_averaging(
      optax.sgd(0.01, momentum=0.5), period=4, rank=2
    )
    start = {'w': np.zeros((5, 3), jnp.bfloat16), 'b': np.zeros(3, np.float32)}
    state = pr.engine.create_train_state(mesh, algorithm, start)

    def loss(params, model_state, target, key):
      del key
      outputs = params['w'].astype(jnp.float32) + params['b']
      scales = jnp.array([1.0, 3.0, 9.0])
      return (scales * (outputs - target) ** 2).sum(), (model_state, {})

    train_steps = pr.engine.make_resident_train_steps(
      mesh, algorithm, loss, lambda data, step, replica, key: data
    )
    target = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    state, metrics = train_steps(state, mesh.replicate(target), 200)
    losses = np.asarray(metrics['loss'])[0, :, 0]
    self.assertTrue(np.isfinite(losses).all())
    self.assertLess(losses[-1], 0.02 * losses[0])
    self.assertEqual(state.params['w'].dtype, jnp.bfloat16)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, -1, 2.0, True, None)
  def test_periods_are_positive_integers(self, bad):
    message = rf'period must be an integer >= 1, got {bad!r}'
    for make in (
      lambda: pr.scaffold(PLAIN, period=bad, learning_rate=0.1),
      lambda: pr.weighted_averaging(SGD, period=bad, weights=[1, 2]),
      lambda: pr.natural_gradient_averaging(SGD, period=bad),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()

  @parameterized.parameters(0, -0.1, float('nan'), '0.1', None)
  def test_scaffold_has_a_learning_rate(self, bad):
    with self.assertRaisesRegex(
      ValueError, 'learning_rate must be a schedule or > 0, got'
    ):
      pr.scaffold(PLAIN, period=4, learning_rate=bad)

  def test_there_is_one_weight_per_replica(self):
    algorithm = pr.weighted_averaging(SGD, period=4, weights=[1, 2])
    with self.assertRaisesRegex(
      ValueError, 'weights must have one number for each of the 8 replicas'
    ):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )

  @parameterized.parameters(0, 1.1, -0.5, float('nan'), None)
  def test_contraction_is_in_range(self, bad):
    with self.assertRaisesRegex(ValueError, r'contraction must be in \(0, 1\]'):
      pr.wp_sgd(SGD, local_steps=[1, 2], contraction=bad)

  @parameterized.parameters(([0, 1],), ([1.5],), ([],))
  def test_local_steps_are_positive_integers(self, bad):
    with self.assertRaisesRegex(ValueError, 'local_steps'):
      pr.wp_sgd(SGD, local_steps=bad, contraction=0.9)

  @parameterized.parameters(-1, 1.5, None, '3')
  def test_start_step_is_a_step(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'start_step must be an integer >= 0, got {bad!r}'
    ):
      pr.tail_averaging(SGD, start_step=bad)

  @parameterized.parameters(
    lambda tx: pr.scaffold(tx, period=2, learning_rate=0.1),
    lambda tx: pr.weighted_averaging(tx, period=2, weights=[1]),
    lambda tx: pr.wp_sgd(tx, local_steps=[1], contraction=0.5),
    lambda tx: pr.tail_averaging(tx, start_step=2),
    lambda tx: pr.natural_gradient_averaging(tx, period=2),
  )
  def test_optimizer_is_optax(self, make):
    with self.assertRaisesRegex(ValueError, 'optax transformation.*got 0.1'):
      make(0.1)


if __name__ == '__main__':
  absltest.main()
