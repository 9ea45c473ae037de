"""Outer optimizers: identities, results and errors."""

import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows import LEARNING_RATE, MOMENTUM, PLAIN, SGD, N, T
from tests.rows.outer import PULLS, coins

PROBLEM = reference.make_problem(N, T)
RESTART = pr.chain(pr.sync(pr.mixing.mean()), pr.restart(SGD))
EVERYTHING = pr.sync(pr.mixing.mean(), ('params', 'opt_state'))

ALGORITHMS = {
  'ssgd': lambda: pr.ssgd(PLAIN),
  'local_sgd': lambda: pr.local_sgd(SGD, period=4),
  'local_sgd_reset': lambda: pr.local_sgd(SGD, period=4, average=RESTART),
  'local_sgd_all': lambda: pr.local_sgd(SGD, period=4, average=EVERYTHING),
  'slowmo_local': lambda: pr.slowmo(
    SGD, learning_rate=LEARNING_RATE, period=4, slow_momentum=0.0
  ),
  'slowmo_local_reset': lambda: pr.slowmo(
    SGD,
    learning_rate=LEARNING_RATE,
    period=4,
    slow_momentum=0.0,
    average=RESTART,
  ),
  'slowmo_local_all': lambda: pr.slowmo(
    SGD,
    learning_rate=LEARNING_RATE,
    period=4,
    slow_momentum=0.0,
    average=EVERYTHING,
  ),
  'slowmo_ssgd': lambda: pr.slowmo(
    PLAIN, learning_rate=LEARNING_RATE, period=1, slow_momentum=0.0
  ),
  'slowmo': lambda: pr.slowmo(
    SGD,
    learning_rate=LEARNING_RATE,
    period=4,
    slow_learning_rate=1.0,
    slow_momentum=0.6,
  ),
  'slowmo_constant_schedule': lambda: pr.slowmo(
    SGD,
    learning_rate=optax.constant_schedule(LEARNING_RATE),
    period=4,
    slow_momentum=0.6,
  ),
  'slowmo_scaled': lambda: pr.slowmo(
    SGD,
    learning_rate=LEARNING_RATE,
    period=4,
    slow_learning_rate=0.7,
    slow_momentum=0.9,
  ),
  'bmuf': lambda: pr.bmuf(SGD, period=4, block_momentum=0.6),
  'bmuf_scaled': lambda: pr.bmuf(
    SGD, period=4, block_momentum=0.9, block_learning_rate=0.7
  ),
  'bmuf_nesterov': lambda: pr.bmuf(
    SGD, period=4, block_momentum=0.9, block_learning_rate=0.7, nesterov=True
  ),
  'diloco': lambda: pr.diloco(SGD, period=4),
  'diloco_plain': lambda: pr.diloco(SGD, period=4, outer=optax.sgd(1.0)),
  'diloco_outer': lambda: pr.diloco(
    SGD, period=4, outer=optax.sgd(0.7, momentum=0.9)
  ),
  'streaming_one': lambda: pr.streaming_diloco(
    SGD, period=4, fragments=1, delay=0, alpha=0.0
  ),
}


@functools.cache
def trajectory(name):
  return harness.run_problem(ALGORITHMS[name](), PROBLEM).x


class IdentitiesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('slowmo_local', 'local_sgd'),
    ('slowmo_local_reset', 'local_sgd_reset'),
    ('slowmo_local_all', 'local_sgd_all'),
    ('slowmo_ssgd', 'ssgd'),
    ('slowmo_constant_schedule', 'slowmo'),
    ('bmuf', 'slowmo'),
    ('bmuf_scaled', 'slowmo_scaled'),
    ('diloco', 'bmuf_nesterov'),
    ('diloco_plain', 'local_sgd'),
    ('streaming_one', 'diloco'),
  )
  def test_special_case_collapses(self, special, general):
    assert_close(trajectory(special), trajectory(general))

  @parameterized.parameters(
    ('bmuf_scaled', 'bmuf_nesterov'),
    ('slowmo', 'slowmo_local'),
    ('slowmo_local', 'slowmo_local_reset'),
    ('slowmo_local', 'slowmo_local_all'),
  )
  def test_these_are_different_algorithms(self, one, other):
    self.assertGreater(np.abs(trajectory(one) - trajectory(other)).max(), 1e-3)

  def test_slowmo_of_one_replica_is_lookahead(self):
    alone = reference.make_problem(1, T)
    algorithm = pr.slowmo(
      SGD,
      learning_rate=LEARNING_RATE,
      period=5,
      slow_learning_rate=0.4,
      slow_momentum=0.0,
    )
    x = harness.run_problem(algorithm, alone, num_devices=1).x[:, 0]
    with jax.enable_x64(True):
      lookahead = optax.lookahead(SGD, sync_period=5, slow_step_size=0.4)
      params = optax.LookaheadParams.init_synced(alone.start)
      state = lookahead.init(params)
      for t in range(1, T + 1):
        g = alone.gradient(0, np.asarray(params.fast), t)
        updates, state = lookahead.update(g, state, params)
        params = optax.apply_updates(params, updates)
        assert_close(x[t], params.fast)


class SlowMoTest(parameterized.TestCase):
  def pulled(self, learning_rate):
    """Four steps in rounds of two, with x set to 1 before each average."""
    algorithm = pr.slowmo(
      pr.let(params=lambda params: 1 + 0 * params),
      learning_rate=learning_rate,
      period=2,
      slow_learning_rate=0.5,
      slow_momentum=0.5,
    )
    mesh = pr.engine.ReplicaMesh(4, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda *args: None
    )
    batches = mesh.place_per_device(np.zeros((2, 4, 2)))
    return train_steps(state, batches)[0]

  def test_reads_the_learning_rate_of_the_last_step_of_the_round(self):
    # gamma = 1/2: u = -1 / gamma = -2, x = 0.5 / 2 * 2 = 0.5; then gamma = 1/4:
    # u = -1 - 0.5 / gamma = -3, x = 0.5 + 0.5 / 4 * 3 = 0.875.
    state = self.pulled(lambda step: 1.0 / (1 + step))
    np.testing.assert_allclose(np.asarray(state.params), 0.875, rtol=1e-6)

  def test_a_learning_rate_of_zero_is_the_limit(self):
    # gamma = 1/2 first: u = -2, x = 0.5; then gamma = 0: u = -1 and x = 0.5 +
    # 0.5 * 0.5.
    state = self.pulled(lambda step: 0.5 * (step < 2))
    np.testing.assert_allclose(np.asarray(state.params), 0.75, rtol=1e-6)
    momentum = state.registers['slowmo.u']
    np.testing.assert_allclose(np.asarray(momentum), -1, rtol=1e-6)


class PalsgdTest(parameterized.TestCase):
  def test_without_pulls_it_is_diloco(self):
    never = self.run_with(probability=0.0, pull=5.0)
    assert_close(never.x, trajectory('diloco'))

  @parameterized.parameters({'pull': 0.0}, {'draw_seed': 1})
  def test_the_pulls_and_the_coins_matter(self, **other):
    one, another = (self.run_with(**options).x for options in ({}, other))
    self.assertGreater(np.abs(one - another).max(), 1e-3)

  @parameterized.parameters(1, 8)
  def test_the_ledger_knows_who_works(self, num_devices):
    run = self.run_with(num_devices)
    work, _ = self.algorithm().cost(
      pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32)),
      N,
      np.arange(T),
    )
    np.testing.assert_array_equal(run.metrics['active'] == 1, work.active)
    np.testing.assert_array_equal(run.metrics['loss'] != 0, work.active)
    np.testing.assert_array_equal(work.active, ~coins())

  @parameterized.parameters(
    ('probability', 1.0, r'in \[0, 1\)'),
    ('probability', None, r'in \[0, 1\)'),
    ('pull', -1.0, '>= 0 and finite'),
    ('learning_rate', 0.0, 'a schedule or > 0'),
    ('draw_seed', -1, r'an integer in 0 .. 2\*\*32 - 1'),
  )
  def test_arguments_are_in_range(self, name, bad, expected):
    with self.assertRaisesRegex(
      ValueError, f'{name} must be {expected}, got {bad}'
    ):
      self.algorithm(**{name: bad})

  def algorithm(self, **options):
    options = {'learning_rate': LEARNING_RATE, **PULLS, **options}
    return pr.palsgd(SGD, period=4, **options)

  def run_with(self, num_devices=2, **options):
    return harness.run_problem(self.algorithm(**options), PROBLEM, num_devices)


class ElasticTest(parameterized.TestCase):
  @parameterized.parameters('easgd', 'eamsgd')
  def test_output_is_the_center(self, name):
    if name == 'easgd':
      algorithm = pr.easgd(SGD, period=3, alpha=0.1)
    else:
      algorithm = pr.eamsgd(PLAIN, period=3, alpha=0.1, momentum=MOMENTUM)
    run = harness.run_problem(algorithm, PROBLEM)
    loop = getattr(reference, name)
    center = loop(
      PROBLEM,
      period=3,
      alpha=0.1,
      learning_rate=LEARNING_RATE,
      momentum=MOMENTUM,
      center=True,
    )
    with jax.enable_x64(True):
      params, _ = pr.engine.consensus(algorithm, run.state)
    assert_close(harness.to_vector(params), center[-1])
    self.assertGreater(np.abs(run.x[-1].mean(axis=0) - center[-1]).max(), 1e-3)

  def test_momentum_alone_is_nesterov_in_other_coordinates(self):
    # No pull in T steps: y = x + delta v is the sequence of optax.
    ours = pr.eamsgd(PLAIN, period=2 * T, alpha=0.1, momentum=MOMENTUM)
    x = harness.run_problem(ours, PROBLEM).x
    nesterov = optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    theirs = pr.local_sgd(nesterov, period=2 * T)
    y = harness.run_problem(theirs, PROBLEM).x
    assert_close(x[1:] + MOMENTUM * (x[1:] - x[:-1]), y[1:])

  def test_the_force_tells_eamsgd_from_nesterov_inside_easgd(self):
    nesterov = optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    one = harness.run_problem(
      pr.easgd(nesterov, period=2, alpha=0.1), PROBLEM
    ).x
    run = harness.run_problem(
      pr.eamsgd(PLAIN, period=2, alpha=0.1, momentum=MOMENTUM), PROBLEM
    )
    velocity = harness.to_vector(
      run.mesh.gather(run.state.registers)['eamsgd.v']
    )
    ahead = run.x[-1] + MOMENTUM * velocity
    self.assertGreater(np.abs(one[-1] - ahead).max(), 1e-3)


class TrafficTest(parameterized.TestCase):
  @parameterized.parameters(
    ('slowmo', 6, 6 * 48),
    ('bmuf', 6, 6 * 48),
    ('diloco', 6, 6 * 48),
    ('streaming_one', 6, 6 * 48),
  )
  def test_a_round_is_one_all_reduce(self, name, rounds, payload):
    self.check(ALGORITHMS[name](), rounds, payload)

  def test_elastic_averaging_sends_the_parameters(self):
    self.check(pr.easgd(SGD, period=6, alpha=0.1), 4, 4 * 48)
    ours = pr.eamsgd(PLAIN, period=6, alpha=0.1, momentum=0.5)
    self.check(ours, 4, 4 * 48)

  def test_fragments_are_sent_by_themselves(self):
    # Of H = 4 steps b (16 bytes) goes at t = 2, 6, ..., w (32) at t = 4, 8, ...
    algorithm = pr.streaming_diloco(
      SGD, period=4, fragments=2, delay=1, alpha=0.5
    )
    self.check(algorithm, 12, 6 * 48)
    spent = self.account(algorithm)
    per_step = np.diff(spent.bytes_sent)[:4] / (2 * (N - 1) / N)
    np.testing.assert_allclose(per_step, [0, 16, 0, 32])

  def account(self, algorithm):
    mesh = pr.engine.ReplicaMesh(N)
    params = {'b': np.zeros(4, np.float32), 'w': np.zeros(8, np.float32)}
    state = harness.state_types(mesh, algorithm, params)
    return pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, T)

  def check(self, algorithm, rounds, payload):
    spent = self.account(algorithm)
    self.assertEqual(spent.rounds[-1], rounds)
    expected = 2 * (N - 1) / N * payload
    self.assertAlmostEqual(spent.bytes_sent[-1], expected)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, -1, 2.0, True, '4')
  def test_periods_are_positive_integers(self, bad):
    for make in (
      lambda: pr.slowmo(SGD, learning_rate=0.1, period=bad, slow_momentum=0.5),
      lambda: pr.bmuf(SGD, period=bad, block_momentum=0.5),
      lambda: pr.diloco(SGD, period=bad),
      lambda: pr.streaming_diloco(
        SGD, period=bad, fragments=1, delay=0, alpha=0.0
      ),
      lambda: pr.easgd(SGD, period=bad, alpha=0.1),
      lambda: pr.eamsgd(SGD, period=bad, alpha=0.1, momentum=0.5),
    ):
      with self.assertRaisesRegex(
        ValueError, rf'period must be an integer >= 1, got {bad!r}'
      ):
        make()

  @parameterized.parameters(
    ('learning_rate', 0.0, 'a schedule or > 0'),
    ('learning_rate', None, 'a schedule or > 0'),
    ('slow_learning_rate', -0.5, '> 0'),
    ('slow_momentum', 1.0, r'in \[0, 1\)'),
    ('slow_momentum', float('nan'), r'in \[0, 1\)'),
  )
  def test_slowmo(self, name, bad, expected):
    good = {'learning_rate': 0.1, 'slow_momentum': 0.5}
    with self.assertRaisesRegex(
      ValueError, rf'^{name} must be {expected}, got {bad!r}$'
    ):
      pr.slowmo(SGD, period=4, **{**good, name: bad})

  @parameterized.parameters(
    ('block_momentum', 1.0, r'in \[0, 1\)'),
    ('block_momentum', '0.5', r'in \[0, 1\)'),
    ('block_learning_rate', 0, '> 0'),
  )
  def test_bmuf(self, name, bad, expected):
    with self.assertRaisesRegex(
      ValueError, rf'^{name} must be {expected}, got {bad!r}$'
    ):
      pr.bmuf(SGD, period=4, **{'block_momentum': 0.5, name: bad})

  def test_outer_optimizers_are_optax(self):
    for make in (
      lambda: pr.diloco(SGD, period=4, outer=0.7),
      lambda: pr.streaming_diloco(
        SGD, period=4, fragments=1, delay=0, alpha=0.0, outer=0.7
      ),
    ):
      with self.assertRaisesRegex(ValueError, 'outer expects an optax'):
        make()


if __name__ == '__main__':
  absltest.main()
