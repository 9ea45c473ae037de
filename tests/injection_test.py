"""Faults: what is lost, what is refused, and who is named."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.base import Traffic, Work
from tests import harness, reference
from tests.rows.faults import CRASHES, DELAYS, events

N = 4
SHAPES = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
SGD = optax.sgd(0.1)


def k_avg(*faults, period=2, **arguments):
  return pr.faults.inject(pr.k_avg(SGD, period=period), *faults, **arguments)


def created(algorithm, num_replicas=N):
  mesh = pr.engine.ReplicaMesh(num_replicas, 1)
  return harness.state_types(mesh, algorithm, np.zeros(3, np.float32))


def quadratic(params, model_state, batch, key):
  del key
  return ((params - batch) ** 2).sum() / 2, (model_state, {})


def trained(algorithm, num_steps, num_devices=2, num_replicas=N):
  """A trainer, its state after some steps, and the metrics."""
  trainer = pr.trainer(
    algorithm,
    quadratic,
    num_replicas=num_replicas,
    num_devices=num_devices,
    eval_fn=lambda params, model_state, batch: {'x': 0 * batch + params[0]},
  )
  rng = np.random.default_rng(0)
  data = pr.shared(rng.normal(size=(32, 3)).astype(np.float32), batch_size=1)
  state = trainer.init(np.zeros(3, np.float32))
  state, metrics = trainer.run(state, data, num_steps)
  return trainer, state, data, metrics


class EventsTest(parameterized.TestCase):
  """A fault is one function of step and replica, in NumPy and in JAX."""

  @parameterized.parameters(
    # In tuples, because a fault is one.
    (pr.faults.crash((0, 2), at=3, until=5),),
    (pr.faults.late(1),),
    (pr.faults.random_crashes(0.4, duration=3, seed=5),),
    (pr.faults.random_delays(0.5),),
    (pr.faults.random_nans(0.2, what='params'),),
  )
  def test_devices_and_ledger_agree(self, fault):
    steps, replicas = np.arange(12), np.arange(N)
    table = fault.affects(steps[:, None], replicas[None])
    on_devices = jax.vmap(fault.affects, (0, None))(
      np.int32(steps), jax.numpy.arange(N)
    )
    np.testing.assert_array_equal(table, on_devices)
    self.assertTrue(table.any())
    self.assertFalse(table.all())

  def test_random_faults_have_their_probability(self):
    fault = pr.faults.random_crashes(0.3, duration=2, seed=1)
    dead = fault.affects(np.arange(2000)[:, None], np.arange(8)[None])
    np.testing.assert_array_equal(dead[::2], dead[1::2])
    # 8000 coins: four standard errors are 0.02.
    self.assertAlmostEqual(dead.mean(), 0.3, delta=0.021)
    other = pr.faults.random_delays(0.3, seed=1)
    late = other.affects(np.arange(1000)[:, None], np.arange(8)[None])
    both = np.corrcoef(late.ravel(), dead[:1000].ravel())
    self.assertLess(abs(both[0, 1]), 0.05)

  def test_random_crashes_are_independent_of_the_draws_of_stages(self):
    # Both have seed 0. The second stage draws a coin at each step.
    def tossed(metrics, shared_key):
      return {**metrics, 'coin': jax.random.uniform(shared_key) < 0.5}

    algorithm = pr.chain(pr.gradient(), pr.compute(metrics=tossed))
    _, _, _, metrics = trained(algorithm, num_steps=200, num_devices=1)
    crashes = pr.faults.random_crashes(0.5, duration=1)
    dead = crashes.affects(np.arange(200)[:, None], np.arange(N)[None])
    equal = (np.asarray(metrics['coin']) == dead).mean(axis=0)
    # Four standard errors of 200 pairs.
    np.testing.assert_allclose(equal, 0.5, atol=0.15)

  @parameterized.parameters(
    (lambda: pr.faults.crash(-1, at=3), 'replica'),
    (lambda: pr.faults.crash([], at=3), 'expects a replica, got none'),
    (
      lambda: pr.faults.crash(1, at=3, until=3),
      'until must be > at = 3, got 3',
    ),
    (lambda: pr.faults.slow(1, factor=0.5), 'factor must be >= 1'),
    (lambda: pr.faults.nan(1, at=0, what='x'), "'grads' or 'params', got 'x'"),
    (lambda: pr.faults.random_delays(1.5), r'in \[0, 1\], got 1.5'),
  )
  def test_refuses(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


class LedgerTest(parameterized.TestCase):
  """The ledger counts what was lost, and who was waited for."""

  def account(self, *faults, num_steps=6, network=pr.ledger.NETWORK, **options):
    return pr.ledger.account(
      k_avg(*faults, **options), SHAPES, N, num_steps, network
    )

  def test_gradients_and_rounds(self):
    # Steps 0 .. 5, rounds at 1, 3, 5. Replica 1 is dead at 1 .. 3.
    spent = self.account(
      pr.faults.crash(1, at=1, until=4), pr.faults.late(2, at=3, until=4)
    )
    self.assertEqual(spent.gradients.tolist(), [0, 4, 7, 10, 13, 17, 21])
    self.assertEqual(spent.gradients_lost.tolist(), [0, 0, 1, 2, 3, 3, 3])
    self.assertEqual(spent.rounds_missed.tolist(), [0, 0, 1, 1, 3, 3, 3])
    # Three averages, and the state of a peer at step 4.
    self.assertEqual(spent.rounds.tolist(), [0, 0, 1, 1, 2, 3, 4])
    self.assertEqual(spent.bytes_sent[5] - spent.bytes_sent[4], 12)

  def test_what_the_ledger_counts_is_what_is_trained(self):
    algorithm = k_avg(*events(), period=3)
    _, _, _, metrics = trained(algorithm, 18, num_replicas=8)
    meter = pr.ledger.meter(algorithm, SHAPES, 8, 18)
    spent = meter.spent(meter.advance(meter.init(), 18))
    self.assertEqual(spent.gradients, int(metrics['active'].sum()))
    self.assertEqual(spent.gradients + spent.gradients_lost, 8 * 18)
    faults = reference.Faults(8, CRASHES, DELAYS)
    rounds = range(2, 18, 3)
    missed = sum(faults.absent(i, t) for t in rounds for i in range(8))
    self.assertEqual(spent.rounds_missed, missed)

  def test_stale_replicas_receive_nothing(self):
    crash = pr.faults.crash(1, at=1, until=4)
    spent = self.account(crash, rejoin='stale')
    self.assertEqual(spent.rounds[-1], 3)

  def test_all_wait_for_a_slow_replica_and_nobody_for_a_late_one(self):
    free = pr.ledger.Link(0.0, np.inf)
    network = pr.ledger.Network(
      links=dict.fromkeys(pr.ledger.Network().links, free), step_time=1.0
    )
    slow = pr.faults.slow(3, factor=5.0, at=2, until=4)
    seconds = self.account(slow, network=network).seconds
    self.assertEqual(seconds.tolist(), [0, 1, 2, 7, 12, 13, 14])
    late = pr.faults.late(3, at=2, until=4)
    seconds = self.account(slow, late, network=network).seconds
    # The late one is at 7 and 12, and leaves its work when the others average.
    self.assertEqual(seconds.tolist(), [0, 1, 2, 7, 4, 5, 6])

  def test_nobody_waits_for_a_dead_neighbor(self):
    network = pr.ledger.Network(step_time=1.0, speeds=(1.0, 1.0, 0.5, 1.0))
    ring = pr.d_psgd(SGD, mixing=pr.graphs.ring())
    dead = pr.faults.inject(ring, pr.faults.crash(2, at=0))
    ends = [
      pr.ledger.account(a, SHAPES, N, 4, network).seconds[-1]
      for a in (ring, dead)
    ]
    self.assertGreater(ends[0], 8)
    self.assertLess(ends[1], 4.1)

  def test_cost_without_faults_is_that_of_the_algorithm(self):
    plain, injected = (
      a.cost(SHAPES, N, np.arange(4))
      for a in (pr.k_avg(SGD, period=2), k_avg())
    )
    for one, other in zip(plain, injected, strict=True):
      self.assertIs(type(one), type(other))
      if isinstance(one, Work):
        np.testing.assert_array_equal(one.active, other.active)
        self.assertIsNone(other.lost)
      if isinstance(one, Traffic):
        np.testing.assert_array_equal(one.fires, other.fires)
        self.assertIsNone(other.present)


class StateTest(parameterized.TestCase):
  """Dead replicas keep what they have, and are left out of evaluations."""

  def test_evaluation_leaves_out_the_dead(self):
    trainer, state, _, _ = trained(k_avg(pr.faults.crash(1, at=1)), 5)
    x = state.params
    alive = x[[0, 2, 3]].mean(axis=0)
    self.assertGreater(np.abs(alive - x.mean(axis=0)).max(), 1e-3)
    np.testing.assert_allclose(trainer.average(state)[0], alive, rtol=1e-5)
    found = trainer.evaluate(state, np.zeros(4, np.float32))
    np.testing.assert_allclose(found['x'], alive[0], rtol=1e-5)
    distance = reference.consensus_distance(x[[0, 2, 3]].astype(np.float64))
    np.testing.assert_allclose(
      found['consensus_distance'], distance, rtol=1e-4, atol=1e-9
    )

  def test_a_returning_replica_copies_everything_of_a_peer(self):
    def make(until):
      crash = pr.faults.crash(0, at=2, until=until)
      return pr.faults.inject(pr.diloco(optax.adam(0.1), period=3), crash)

    _, state, _, _ = trained(make(7), 6)
    gone = state.registers['diloco.x0']
    self.assertGreater(np.abs(gone[0] - gone[1]).max(), 1e-3)
    _, state, _, _ = trained(make(6), 7)
    there = state.registers['diloco.x0']
    np.testing.assert_array_equal(there[0], there[1])
    np.testing.assert_array_equal(state.opt_state[0].count[:2], [7, 7])

  def test_counts_of_rounds_are_equal_on_all(self):
    algorithm = pr.faults.inject(
      pr.d_psgd(SGD, mixing=pr.graphs.one_peer_exponential()),
      pr.faults.crash(0, at=1, until=3),
    )
    _, state, _, _ = trained(algorithm, 5, num_devices=4)
    rounds = [
      x
      for x in jax.tree.leaves(state.on_devices.algorithm_state)
      if x.dtype == np.int32
    ]
    np.testing.assert_array_equal(np.ravel(rounds), [5] * N)

  def test_push_sum_keeps_its_weight(self):
    algorithm = pr.faults.inject(
      pr.sgp(SGD), pr.faults.crash(1, at=2), pr.faults.late(3, at=4, until=9)
    )
    _, state, _, _ = trained(algorithm, 12)
    weight = state.registers['weight']
    np.testing.assert_allclose(weight.sum(), N, rtol=1e-5)
    self.assertGreater(weight.min(), 0.1)

  def test_a_plain_register_leaves_replicas_out(self):
    algorithm = pr.chain(
      pr.step(SGD),
      pr.compute(present=lambda replica: replica != 1),
      pr.sync(pr.mixing.mean()),
    )
    _, state, _, _ = trained(algorithm, 1)
    np.testing.assert_array_equal(state.params, state.params[[0] * N])

  def test_flags_of_the_dead_are_not_raised(self):
    algorithm = pr.faults.inject(
      pr.chain(
        pr.step(SGD),
        pr.compute(flag=lambda replica: replica == 1),
        pr.at(pr.anyone('flag'), pr.sync(pr.mixing.mean())),
      ),
      pr.faults.crash(1, at=2),
    )
    trainer, state, _, _ = trained(algorithm, 6)
    self.assertEqual(trainer.spent(state).rounds, 6 + 2)  # the checks, and two


class RefusesTest(parameterized.TestCase):
  """What does not work with absent replicas says so before the first step."""

  @parameterized.parameters(
    (lambda: pr.relay_sgd(SGD), 'loses a part'),
    (lambda: pr.edit(SGD, period=2), 'the norms of all N replicas'),
    (lambda: pr.delayed_nesterov(SGD, speeds=(1,) * N, period=2), 'all N rep'),
    (
      lambda: pr.choco_sgd(
        SGD,
        mixing=pr.graphs.ring(),
        compressor=pr.codecs.top_k(0.5),
        consensus_step_size=0.3,
      ),
      'a codec of differences',
    ),
  )
  def test_algorithms(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      created(pr.faults.inject(make(), pr.faults.late(1)))
    created(pr.faults.inject(make(), pr.faults.nan(1, at=3)))

  def test_arguments(self):
    for make, message in (
      (lambda: k_avg('crash'), "such as pr.faults.crash.*got 'crash'"),
      (lambda: k_avg(rejoin='mean'), "'peer' or 'stale', got 'mean'"),
      (lambda: pr.faults.inject(SGD), 'expects an algorithm'),
      (lambda: created(k_avg(pr.faults.late(N))), 'in 0 .. 3, got 4'),
      (
        lambda: created(
          pr.k_avg(SGD, period=2, average=pr.stages.average_trimmed(2))
        ),
        'at least 5 replicas.*got 4',
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()


class NonFiniteTest(parameterized.TestCase):
  """The first replica is named, although all are NaN after an average."""

  @parameterized.parameters(
    ('grads', 'gradient', (2,)), ('params', 'parameters', (2,))
  )
  def test_names_the_first(self, register, what, replicas):
    ill = pr.faults.nan(2, at=3, what=register)
    algorithm = pr.faults.inject(pr.ssgd(SGD), ill)
    trainer, state, data, _ = trained(algorithm, 0)
    found = trainer.find_non_finite(state, data, 6)
    self.assertEqual(found, pr.engine.NonFinite(what, 3, replicas))
    state, metrics = trainer.run(state, data, 5)  # the state is kept
    self.assertTrue(np.isnan(np.asarray(metrics['loss'])[-1]).all())

  def test_names_nobody_if_all_is_well(self):
    trainer, state, data, _ = trained(pr.ssgd(SGD), 0)
    self.assertIsNone(trainer.find_non_finite(state, data, 3))

  def test_a_robust_average_counts_who_is_left_out(self):
    average = pr.stages.average_finite()
    ill = pr.faults.nan((1, 3), at=3)
    algorithm = pr.faults.inject(pr.k_avg(SGD, period=2, average=average), ill)
    trainer, state, _, _ = trained(algorithm, 8)
    self.assertEqual(pr.faults.dropped(state.registers), 2)
    self.assertTrue(np.isfinite(state.params).all())
    _, state, _, _ = trained(algorithm, 4)
    self.assertTrue(np.isfinite(trainer.average(state)[0]).all())

  def test_an_evaluation_leaves_out_who_is_not_finite(self):
    average = pr.stages.average_median()
    algorithm = pr.faults.inject(
      pr.k_avg(SGD, period=5, average=average), pr.faults.nan(1, at=0)
    )
    trainer, state, _, _ = trained(algorithm, 2)
    self.assertTrue(np.isnan(state.params[1]).all())
    want = state.params[[0, 2, 3]].mean(axis=0)
    np.testing.assert_allclose(trainer.average(state)[0], want, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
