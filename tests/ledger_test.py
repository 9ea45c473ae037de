"""Rounds and bytes: by hand, and against the collectives that are run."""

import json
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.ledger import positions
from tests import harness
from tests.rows import TABLE

N = 8
SGD = optax.sgd(0.1, momentum=0.9)
ADAM = optax.adam(0.1)
# Two leaves, 12 numbers: 48 bytes.
PARAMS = {'w': np.zeros((5, 2), np.float32), 'b': np.zeros(2, np.float32)}
PARAM_BYTES = 48
MODEL_STATE = {'mean': np.zeros(4, np.float32), 'seen': np.int32(0)}
ALL_REDUCE = 2 * 7 / 8
BOTH = ('params', 'opt_state')


def loss(params, model_state, batch, key):
  del key
  return params['w'].sum() * batch + params['b'].sum(), (model_state, {})


def create(algorithm, num_devices=2, params=PARAMS):
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  return mesh, harness.state_types(mesh, algorithm, params, MODEL_STATE)


def account(algorithm, num_steps, params=PARAMS):
  _, state = create(algorithm, params=params)
  return pr.ledger.account(
    algorithm, pr.engine.replica_shapes(state), N, num_steps
  )


def _mean(register):
  """The average of the parameters and of something else."""
  return pr.sync(pr.mixing.mean(), ('params', register))


def _chain(*syncs, tx=SGD):
  return pr.chain(pr.gradient(), pr.local_update(tx), *syncs)


class AccountTest(parameterized.TestCase):
  # (algorithm, rounds in 8 steps, bytes by tier)
  @parameterized.named_parameters(
    ('ssgd', pr.ssgd(SGD), 8, {'global': 8 * ALL_REDUCE * 48}),
    ('pr_sgd', pr.pr_sgd(SGD, period=4), 2, {'global': 2 * ALL_REDUCE * 48}),
    ('k_avg', pr.k_avg(SGD, period=3), 2, {'global': 2 * ALL_REDUCE * 48}),
    (
      'one_shot',
      pr.one_shot_averaging(SGD, num_steps=8),
      1,
      {'global': ALL_REDUCE * 48},
    ),
    ('too_late', pr.one_shot_averaging(SGD, num_steps=9), 0, {'global': 0.0}),
    (
      'hier_avg',
      pr.hier_avg(SGD, local_period=2, global_period=8, group_size=4),
      4 + 1,
      {'group': 4 * 2 * 3 / 4 * 48, 'global': ALL_REDUCE * 48},
    ),
    ('ring', pr.d_psgd(SGD), 8, {'neighbor': 8 * 2 * 48}),
    (
      'groups_of_one',
      pr.hier_avg(SGD, local_period=2, global_period=8, group_size=1),
      1,
      {'global': ALL_REDUCE * 48},
    ),
    (
      'dense',
      pr.d_psgd(SGD, mixing=pr.mixing.dense(np.eye(N))),
      8,
      {'neighbor': 8 * 7 * 48},
    ),
    (
      'momentum_too',
      pr.k_avg(SGD, period=4, average=_mean('opt_state')),
      2,
      {'global': 2 * ALL_REDUCE * 96},
    ),
    (
      'adam_too',  # mu and nu, not the count
      pr.k_avg(ADAM, period=4, average=_mean('opt_state')),
      2,
      {'global': 2 * ALL_REDUCE * 144},
    ),
    (
      'model_state_too',  # four means, not the count
      pr.k_avg(SGD, period=4, average=_mean('model_state')),
      2,
      {'global': 2 * ALL_REDUCE * (48 + 16)},
    ),
    (
      'heterogeneous',
      pr.chain(
        pr.where(pr.stages.first_steps([1] * 7 + [4]), pr.step(SGD)),
        pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())),
      ),
      2,
      {'global': 2 * ALL_REDUCE * 48},
    ),
    (
      'outer',
      pr.bmuf(SGD, period=4, block_momentum=0.9),
      2,
      {'global': 2 * ALL_REDUCE * 48},
    ),
    (
      'never',
      _chain(pr.at(pr.schedules.never(), pr.sync(pr.mixing.mean()))),
      0,
      {'global': 0.0},
    ),
  )
  def test_by_hand(self, algorithm, rounds, bytes_by_tier):
    got = account(algorithm, 8)
    self.assertEqual(got.rounds[-1], rounds)
    self.assertEqual(set(got.bytes_by_tier), set(bytes_by_tier))
    for tier, total in bytes_by_tier.items():
      self.assertAlmostEqual(got.bytes_by_tier[tier][-1], total)
    self.assertAlmostEqual(got.bytes_sent[-1], sum(bytes_by_tier.values()))

  def test_entry_t_is_what_was_sent_in_the_first_t_steps(self):
    got = account(pr.k_avg(SGD, period=2), 5)
    np.testing.assert_array_equal(got.rounds, [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(got.bytes_sent, got.rounds * ALL_REDUCE * 48)
    self.assertEqual(got.rounds.dtype, np.int64)
    self.assertEqual(got.bytes_sent.dtype, np.float64)

  def test_does_not_communicate(self):
    got = account(_chain(), 3)
    np.testing.assert_array_equal(got.rounds, np.zeros(4))
    np.testing.assert_array_equal(got.bytes_sent, np.zeros(4))
    self.assertEqual(got.bytes_by_tier, {})

  def test_replicas_are_machines_whatever_the_devices(self):
    algorithm = pr.hier_avg(SGD, local_period=1, global_period=2, group_size=2)
    totals = set()
    for num_devices in (1, 2, 8):
      _, state = create(algorithm, num_devices)
      got = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, 4)
      totals.add((int(got.rounds[-1]), float(got.bytes_sent[-1])))
    self.assertLen(totals, 1)

  def test_half_precision_is_sent_in_single(self):
    half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), PARAMS)
    got = account(pr.k_avg(SGD, period=1), 1, half)
    self.assertAlmostEqual(got.bytes_sent[-1], ALL_REDUCE * 48)

  @parameterized.parameters(
    (pr.ssgd(SGD),),
    (pr.scaffold(SGD, learning_rate=0.1, period=4),),
    (pr.k_avg(ADAM, period=4, average=pr.sync(pr.mixing.mean(), BOTH)),),
  )
  def test_the_parameters_are_enough(self, algorithm):
    shapes = pr.base.Replica(params=PARAMS, model_state=MODEL_STATE)
    found = pr.ledger.account(algorithm, shapes, N, 8)
    wanted = account(algorithm, 8)
    self.assertGreater(wanted.bytes_sent[-1], 0)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)

  def test_a_schedule_may_be_a_constant(self):
    # A user's own schedule that returns one bool, as it may when traced.
    algorithm = _chain(pr.at(lambda step: True, pr.sync(pr.mixing.mean())))
    np.testing.assert_array_equal(account(algorithm, 3).rounds, [0, 1, 2, 3])


FREE = {
  'links': dict.fromkeys(pr.ledger.network.TIERS, pr.ledger.Link(0.0, np.inf))
}
GIGABYTE = pr.ledger.Link(latency=1e-3, bandwidth=1e9)


def seconds(algorithm, num_steps, **network):
  links = {'global': GIGABYTE, 'group': GIGABYTE, 'neighbor': GIGABYTE}
  _, state = create(algorithm)
  return pr.ledger.account(
    algorithm,
    pr.engine.replica_shapes(state),
    N,
    num_steps,
    pr.ledger.Network(**{'links': links, 'step_time': 1.0, **network}),
  ).seconds


class ModeledTimeTest(parameterized.TestCase):
  """The clock, on machines whose times are told by hand."""

  def test_steps_alone(self):
    np.testing.assert_allclose(seconds(_chain(), 3), [0, 1, 2, 3])

  def test_an_all_reduce_costs_its_latencies_and_bytes(self):
    lasts = 2 * (N - 1) * 1e-3 + ALL_REDUCE * 48 / 1e9
    np.testing.assert_allclose(
      seconds(pr.k_avg(SGD, period=2), 4),
      [0, 1, 2 + lasts, 3 + lasts, 4 + 2 * lasts],
      rtol=1e-12,
    )

  def test_a_tier_has_links_of_its_own(self):
    algorithm = pr.hier_avg(SGD, local_period=1, global_period=2, group_size=2)
    links = {
      'global': pr.ledger.Link(1.0, np.inf),
      'group': pr.ledger.Link(0.1, np.inf),
      'neighbor': pr.ledger.Link(0.0, np.inf),
    }
    got = seconds(algorithm, 2, links=links)
    np.testing.assert_allclose(got, [0, 1.2, 2.4 + 14])

  def test_a_mean_waits_for_the_slowest(self):
    speeds = (1, 1, 1, 1, 2, 2, 4, 4)
    got = seconds(pr.k_avg(SGD, period=4), 8, speeds=speeds, **FREE)
    np.testing.assert_allclose(got, np.arange(9))

  def test_nobody_waits_where_local_steps_are_matched_to_speeds(
    self,
  ):
    # Algorithm 3: I_i steps at speed I_i / I_min all take as long.
    speeds = (1, 1, 1, 1, 2, 2, 4, 4)
    algorithm = pr.chain(
      pr.where(pr.stages.first_steps(speeds), pr.step(SGD)),
      pr.at(pr.schedules.every(4), pr.sync(pr.mixing.mean())),
    )
    got = seconds(algorithm, 8, speeds=speeds, **FREE)
    self.assertAlmostEqual(got[4], 1.0)
    self.assertAlmostEqual(got[8], 2.0)

  def test_gossip_waits_for_neighbors_only(self):
    # The same slow steps are met by all; fewer of them are waited for.
    noisy = {**FREE, 'jitter': 1.0}
    ring = seconds(_chain(pr.sync(pr.graphs.ring())), 100, **noisy)[-1]
    everyone = seconds(_chain(pr.sync(pr.mixing.mean())), 100, **noisy)[-1]
    nobody = seconds(_chain(), 100, **noisy)[-1]
    self.assertLess(nobody, 0.9 * ring)
    self.assertLess(ring, 0.9 * everyone)

  def test_jitter_keeps_the_mean_and_makes_barriers_wait(self):
    rare = seconds(pr.k_avg(SGD, period=200), 400, jitter=0.5, **FREE)[-1]
    often = seconds(pr.k_avg(SGD, period=1), 400, jitter=0.5, **FREE)[-1]
    self.assertGreater(often, 1.3 * rare)
    self.assertAlmostEqual(rare / 400, 1.0, delta=0.15)

  @parameterized.parameters(
    ({'speeds': (1, 2)}, 'one number > 0 for each of the 8'),
    ({'speeds': (0,) * 8}, 'one number > 0'),
    ({'speeds': (float('nan'),) + (1,) * 7}, 'one number > 0 .* got nan'),
    ({'speeds': (1,) * 7 + (float('inf'),)}, 'one number > 0 .* got inf'),
    ({'step_time': -1}, 'step_time must be >= 0'),
    ({'step_time': float('nan')}, 'step_time must be >= 0 .* got nan'),
    ({'step_time': 1e308}, 'step_time must be .* at most 1e.100'),
    ({'jitter': float('nan')}, 'jitter must be >= 0 .* got nan'),
    ({'jitter': float('inf')}, 'jitter must be >= 0 .* got inf'),
    ({'seed': -1}, 'seed must be an integer >= 0'),
    ({'links': {**FREE['links'], 'group': pr.ledger.Link(float('nan'), 1.0)}},
     'latency of the group links must be >= 0 .* got nan'),
    ({'links': {**FREE['links'], 'global': pr.ledger.Link(0.0, float('nan'))}},
     'bandwidth of the global links must be .* got nan'),
    ({'links': {**FREE['links'], 'global': pr.ledger.Link(0.0, 0.0)}},
     'bandwidth of the global links must be .* got 0.0'),
    ({'links': {}}, 'links must have the tiers'),
  )  # fmt: skip
  def test_refused(self, network, message):
    with self.assertRaisesRegex(ValueError, message):
      seconds(_chain(), 1, **network)


def naive_clock(costs, waits_of_round, num_steps, network):
  """seconds[num_steps + 1] of machines that look at each other one by one.

  `waits_of_round(i, turn)` is bool[N, N] of the i-th cost.
  """
  noise = np.random.default_rng([network.seed, 0])
  pace = network.step_time / np.array(network.speeds or [1.0] * N)
  clock, turns, seconds = [0.0] * N, [0] * len(costs), [0.0]
  for t in range(num_steps):
    for i, cost in enumerate(costs):
      if isinstance(cost, pr.base.Work):
        draws = noise.normal(size=N) * network.jitter - network.jitter**2 / 2
        for r in range(N):
          if cost.active[t, r]:
            clock[r] += pace[r] * np.exp(draws[r])
      elif cost.fires[t]:
        waits = waits_of_round(i, turns[i])
        turns[i] += 1
        clock = [
          max(clock[j] for j in range(N) if waits[r, j] or j == r)
          + network.seconds(cost)
          for r in range(N)
        ]
    seconds.append(max(clock))
  return seconds


class NaiveClockTest(parameterized.TestCase):
  """The clock does what a loop over steps and pairs of replicas does."""

  T = 60
  SPEEDS = (1.0, 2.0, 4.0, 4.0, 2.0, 1.0, 1.0, 3.0)

  @parameterized.product(
    mixing=(
      pr.mixing.mean, pr.graphs.ring, pr.graphs.star,
      pr.graphs.one_peer_exponential, pr.graphs.base_graph,
      lambda: pr.mixing.group_mean(2), lambda: pr.mixing.dense(np.eye(N)),
    ),
    network=(
      {}, {'jitter': 0.4}, {'speeds': SPEEDS},
      {'speeds': SPEEDS, 'jitter': 0.4, 'seed': 2},
    ),
  )  # fmt: skip
  def test_of_graphs_that_take_turns(self, mixing, network):
    stages = (pr.gradient(), pr.at(pr.schedules.every(3), pr.sync(mixing())))
    matrices = mixing().matrices(N) != 0
    network = pr.ledger.Network(**network)
    got, costs = self.account(pr.chain(*stages), network)
    want = naive_clock(
      costs, lambda i, turn: matrices[turn % len(matrices)], self.T, network
    )
    np.testing.assert_array_equal(got.seconds, want)

  @parameterized.parameters(
    (
      pr.graphs.random_matching,
      lambda k: pr.graphs.random_matching().matrices(N)[k],
    ),
    (
      pr.graphs.random_neighbor,
      lambda k: pr.graphs.random_neighbor().matrices(N)[k],
    ),
  )
  def test_of_graphs_drawn_by_chance(self, mixing, weights):
    network = pr.ledger.Network(jitter=0.4, seed=5)
    stages = pr.chain(pr.gradient(), pr.sync(mixing()))
    got, costs = self.account(stages, network)
    draw = np.random.default_rng([network.seed, 1])
    drawn = [int(draw.integers(N - 1)) for _ in range(self.T)]
    want = naive_clock(
      costs, lambda i, turn: weights(drawn[turn]) != 0, self.T, network
    )
    np.testing.assert_array_equal(got.seconds, want)

  def test_of_replicas_that_draw_by_themselves(self):
    network = pr.ledger.Network(jitter=0.4)
    mixing = pr.graphs.independent_neighbors()
    got, costs = self.account(pr.chain(pr.gradient(), pr.sync(mixing)), network)
    draw = np.random.default_rng([network.seed, 1])
    index = np.arange(N)
    waits = np.zeros((self.T, N, N), bool)
    for each in waits:
      each[index, (index + 1 + draw.integers(N - 1, size=N)) % N] = True
    want = naive_clock(costs, lambda i, turn: waits[turn], self.T, network)
    np.testing.assert_array_equal(got.seconds, want)

  @parameterized.parameters(1, 7, 2 * N)
  def test_how_much_is_held_at_once_changes_nothing(self, held):
    # Active steps that differ, so that the ledger asks for them again.
    algorithm = pr.chain(
      pr.where(pr.stages.first_steps((1, 3) * (N // 2)), pr.step(SGD)),
      pr.sync(pr.graphs.random_matching()),
    )
    network = pr.ledger.Network(jitter=0.4)
    want, _ = self.account(algorithm, network)
    with mock.patch.multiple(pr.ledger.counting, HELD=held, TIMED=held):
      got, _ = self.account(algorithm, network)
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def account(self, algorithm, network):
    _, state = create(algorithm)
    shapes = pr.engine.replica_shapes(state)
    costs = algorithm.cost(shapes, N, np.arange(self.T))
    return pr.ledger.account(algorithm, shapes, N, self.T, network), costs


class MeterTest(parameterized.TestCase):
  """Totals counted in pieces equal the totals of the whole run."""

  T = 60
  UNEQUAL = pr.chain(
    # All work until step 20, so that replicas get out of step late.
    pr.where(lambda step, replica: (step < 20) | (replica < 4), pr.step(SGD)),
    pr.at(pr.schedules.every(3), pr.sync(pr.graphs.random_matching())),
    pr.at(pr.schedules.every(7), pr.sync(pr.graphs.independent_neighbors())),
    pr.sync(pr.mixing.group_mean(2)),
  )
  TWO_GRADIENTS = pr.chain(
    pr.gradient(), pr.at(pr.schedules.every(2), pr.sync(pr.graphs.ring())),
    pr.step(SGD),
    pr.at(pr.schedules.every(5), pr.sync(pr.mixing.mean())),
  )  # fmt: skip

  @parameterized.product(
    algorithm=(
      'ssgd', 'hier_avg', 'ad_psgd', UNEQUAL, TWO_GRADIENTS,
    ),
    network=({}, {'jitter': 0.4}, {'speeds': NaiveClockTest.SPEEDS}),
    pieces=((60,), (1, 2, 3, 20, 21, 59, 60)),
  )  # fmt: skip
  def test_is_the_account_bit_for_bit(self, algorithm, network, pieces):
    if isinstance(algorithm, str):
      algorithm = TABLE[algorithm].make()
    self.check(algorithm, pr.ledger.Network(**network), pieces, first=4)

  @parameterized.product(
    algorithm=('ssgd', UNEQUAL), network=({}, {'jitter': 0.4}), step=(0, 7, 33)
  )
  def test_a_position_is_saved_bit_for_bit(self, algorithm, network, step):
    if isinstance(algorithm, str):
      algorithm = TABLE[algorithm].make()
    network = pr.ledger.Network(**network)
    asked = []

    def cost(shapes, num_replicas, steps):
      asked.extend(steps)
      return algorithm.cost(shapes, num_replicas, steps)

    shapes = self.shapes(algorithm)
    counted = algorithm._replace(cost=cost)
    with mock.patch.multiple(pr.ledger.counting, SPAN=4):
      meter = pr.ledger.meter(algorithm, shapes, N, self.T, network)
      before = meter.advance(meter.init(), step)
      saved = json.loads(json.dumps(positions.to_json(before)))
      resumed = pr.ledger.meter(counted, shapes, N, self.T, network)
      found = positions.from_json(saved, resumed.init())
      self.assertEqual(resumed.spent(found), meter.spent(before))
      asked.clear()
      ends = [
        run.advance(at, 60) for run, at in ((meter, before), (resumed, found))
      ]
    self.assertEqual(meter.spent(ends[0]), resumed.spent(ends[1]))
    np.testing.assert_array_equal(ends[0].clock.times, ends[1].clock.times)
    if before.clock.apart:
      self.assertGreaterEqual(min(asked), step - step % 4)

  def test_a_position_of_another_meter_is_not_used(self):
    found = {}
    for name, n in (('ssgd', N), ('ssgd', 4), ('hier_avg', N)):
      algorithm = TABLE[name].make()
      meter = pr.ledger.meter(algorithm, self.shapes(algorithm), n, self.T)
      found[name, n] = meter.init(), meter.advance(meter.init(), 3)
    start = found['ssgd', N][0]
    self.assertIs(positions.from_json(None, start), start)
    for key in (('ssgd', 4), ('hier_avg', N)):
      saved = positions.to_json(found[key][1])
      self.assertIs(positions.from_json(saved, start), start)

  @parameterized.parameters('fedavg', 'palsgd')
  def test_is_the_account_of_those_who_draw_who_works(self, name):
    network = pr.ledger.Network(jitter=0.4)
    self.check(TABLE[name].make(), network, (7, 30, 60), first=32)

  def check(self, algorithm, network, pieces, first):
    shapes = self.shapes(algorithm)
    whole = pr.ledger.account(algorithm, shapes, N, self.T, network)
    with mock.patch.multiple(
      pr.ledger.counting, HELD=4 * first * N, TIMED=first * N, SPAN=first
    ):
      meter = pr.ledger.meter(algorithm, shapes, N, self.T, network)
      position = meter.init()
      for step in pieces:
        position = meter.advance(position, step)
        got = meter.spent(position)
        self.assertEqual(got.gradients, whole.gradients[step])
        self.assertEqual(got.rounds, whole.rounds[step])
        self.assertEqual(got.bytes_sent, whole.bytes_sent[step])
        self.assertEqual(got.seconds, whole.seconds[step])
        for tier, sent in got.bytes_by_tier.items():
          self.assertEqual(sent, whole.bytes_by_tier[tier][step])

  def test_a_position_can_be_advanced_twice(self):
    network = pr.ledger.Network(jitter=0.4)
    meter = pr.ledger.meter(
      self.UNEQUAL, self.shapes(self.UNEQUAL), N, self.T, network
    )
    half = meter.advance(meter.init(), 30)
    one, two = (meter.spent(meter.advance(half, 60)) for _ in range(2))
    self.assertEqual(one, two)
    self.assertEqual(half.step, 30)

  @parameterized.parameters(9, 61, -1)
  def test_goes_forward_to_the_end_only(self, step):
    algorithm = pr.k_avg(SGD, period=4)
    meter = pr.ledger.meter(algorithm, self.shapes(algorithm), N, self.T)
    with self.assertRaisesRegex(
      ValueError, f'step must be in 10 .* got {step}'
    ):
      meter.advance(meter.advance(meter.init(), 10), step)

  @parameterized.parameters(
    'ssgd', 'pr_sgd', 'fedavg', 'one_shot_averaging', 'palsgd', 'doubling'
  )
  def test_asks_no_more_than_it_has_done_of_the_longest_run(self, name):
    T = 2**31 - 1
    made = {
      'one_shot_averaging': lambda: pr.one_shot_averaging(SGD, num_steps=T),
      'doubling': lambda: pr.k_avg(
        SGD, period=pr.schedules.doubling(1, num_steps=T)
      ),
    }
    algorithm = (made.get(name) or TABLE[name].make)()
    asked = []

    def cost(shapes, num_replicas, steps):
      asked.append(len(steps))
      return algorithm.cost(shapes, num_replicas, steps)

    shapes = self.shapes(algorithm)
    meter = pr.ledger.meter(algorithm._replace(cost=cost), shapes, N, T)
    position = meter.advance(meter.init(), 100)
    self.assertEqual(sum(asked), pr.ledger.counting.SPAN)
    want = pr.ledger.account(algorithm, shapes, N, 100)
    self.assertEqual(meter.spent(position).seconds, want.seconds[-1])
    self.assertEqual(meter.spent(position).rounds, want.rounds[-1])

  @parameterized.parameters((4, 64 * N), (64, 4 * N))
  def test_the_spans_cover_the_run_and_do_not_grow(self, span, held):
    with mock.patch.multiple(pr.ledger.counting, HELD=held, SPAN=span):
      spans = [pr.ledger.counting._span(step, N, 998) for step in range(998)]
    for step, (first, stop) in enumerate(spans):
      self.assertLessEqual(first, step)
      self.assertLess(step, stop)
    found = sorted(set(spans))
    self.assertEqual(found[:3], [(0, 4), (4, 8), (8, 12)])
    self.assertEqual(found[-1], (996, 998))

  def test_the_share_that_works(self):
    local_steps = (1, 1, 1, 1, 2, 2, 2, 2)
    algorithm = pr.where(pr.stages.first_steps(local_steps), pr.step(SGD))
    shapes = self.shapes(algorithm)
    for num_steps in (8, 10**9):
      got = pr.ledger.working_share(algorithm, shapes, N, num_steps)
      self.assertAlmostEqual(got, 0.75, delta=0.01)
    everyone = pr.ssgd(SGD)
    got = pr.ledger.working_share(everyone, shapes, N, 10**9)
    self.assertEqual(got, 1.0)

  def shapes(self, algorithm):
    _, state = create(algorithm)
    return pr.engine.replica_shapes(state)


class ManyReplicasTest(parameterized.TestCase):
  """N = 1024: nothing of the size of K N^2, or of T N^2, is made."""

  SIZE = 1024

  @parameterized.parameters(
    pr.mixing.mean, pr.graphs.ring, pr.graphs.one_peer_exponential,
    pr.graphs.random_matching,
    pr.graphs.random_neighbor, pr.graphs.independent_neighbors,
    pr.graphs.base_graph, pr.graphs.torus,
    pr.graphs.exponential, pr.graphs.hypercube, pr.graphs.star,
    lambda: pr.mixing.group_mean(32),
  )  # fmt: skip
  def test_can_be_accounted_for(self, make):
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    algorithm = pr.chain(pr.gradient(), pr.sync(make()))
    got = pr.ledger.account(
      algorithm, shapes, self.SIZE, 50, pr.ledger.Network(jitter=0.1)
    )
    self.assertEqual(got.rounds[-1], 50)
    self.assertGreater(got.seconds[-1], 50 * pr.ledger.NETWORK.step_time)


class CollectivesTest(parameterized.TestCase):
  """The collectives that run; `traced_programs_test` compares their bytes."""

  @parameterized.parameters(
    'pr_sgd', 'k_avg', 'hier_avg', 'diloco', 'post_local'
  )
  def test_rounds_that_are_rare_are_conditional(self, name):
    algorithm = TABLE[name].make()
    mesh, state = create(algorithm, N)
    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    batch = mesh.place_per_device(np.zeros((N, 1, 1), np.float32))
    found = harness.collectives_of(train_steps, state, batch)
    self.assertNotEmpty(found)
    for sent in found:
      self.assertTrue(sent.conditional)


if __name__ == '__main__':
  absltest.main()
