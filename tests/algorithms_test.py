"""One table of algorithms, crossed with the laws that every one obeys.

Each (algorithm, number of devices) is compiled once and run once per problem,
in float64, so that a tolerance of 1e-12 tells two sequences apart.
"""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.base import Traffic
from tests import elastic_laws, harness, reference
from tests.rows import LEARNING_RATE, SGD, TABLE, N, T

# Devices cut groups and neighborhoods in other places on each layout.
LAYOUTS = (1, 2, 4, 8)
# A mean of all replicas has no group to cut, and `collectives_test` runs it on
# every layout: such rows alternate between one device and one per replica.
EXTREMES = (1, 8)
# The layout of laws that are not about layouts: blocks and a real axis.
ONE_LAYOUT = 2
MIDDLE = 10  # a step inside every period

PROBLEMS = {
  'smooth': reference.make_problem(N, T),
  'common_hessian': reference.make_problem(N, T, common_hessian=True),
}


# Rows with a message that does not come from everybody, or not with a weight.
SELECTIVE = (
  'hier_avg',
  'multi_level',
  'hierarchical_local_sgd',
  'd_psgd_ring',
  'd_psgd_dense',
  'd_psgd_matching',
  'd_psgd_one_peer',
  'd_psgd_base_graph',
  'd_psgd_independent',
  'd_psgd_matcha',
  'd_psgd_star',
  'diffusion_ring_3',
  'sgp_directed_3',
  'sgp_one_peer',
  'sgp_matching',
  'pr_sgd_ring',
  'ad_psgd',
  'sparq_sgd',
  'combine_then_adapt_ring',
  'gradient_tracking',
  'd2',
  'extra',
  'k_gt',
  'qg_dsgdm',
  'relay_sgd',
  'slowmo_sgp',
  'diloco_sgp',
  'diloco_ring',
  'diloco_groups',
  'bmuf_ring',
  'noloco',
  'delayed_nesterov',
  'choco_sgd',
  'fedavg',
  'decoupled_diloco',
  'edit',
  'faults_k_avg',
  'faults_k_avg_groups',
  'faults_d_psgd',
  'faults_sgp',
  'faults_diloco',
)


# Rows that do not fit N / 2 replicas -> the line in which they say so.
ONLY_N = {
  'heterogeneous_reset_buffers': 'one number for each of the 4 replicas',
  'hier_avg_one_group': 'group_size must divide the 4 replicas',
  'fednova_restarted': 'one number for each of the 4 replicas',
  'faults_sgp': r'must be \[4, 4\], one row per replica',
  'faults_trimmed': 'needs at least 5 replicas',
  'faults_krum': 'needs at least 7 replicas',
  'faults_multi_krum': 'needs at least 5 replicas',
}


@functools.cache
def engine(name, num_devices):
  with jax.enable_x64(True):
    return harness.make_engine(TABLE[name].make(), N, num_devices)


@functools.cache
def batches(problem, num_devices):
  """One placed batch for each step."""
  with jax.enable_x64(True):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    return [
      harness.problem_batches(mesh, PROBLEMS[problem], [t]) for t in range(T)
    ]


def initial_state(run, problem='smooth'):
  start = harness.to_tree(PROBLEMS[problem].start)
  return pr.engine.create_train_state(run.mesh, run.algorithm, start)


@functools.cache
def oracle(name):
  row = TABLE[name]
  return row.oracle(
    PROBLEMS['smooth'], learning_rate=LEARNING_RATE, momentum=row.momentum
  )


def advance(run, state, steps, problem='smooth'):
  """The state after the steps, and the parameters [N, d] after each."""
  points = []
  for t in steps:
    state, _ = run.train_steps(state, batches(problem, run.mesh.num_devices)[t])
    points.append(harness.to_vector(run.mesh.gather(state.params)))
  return state, points


@dataclasses.dataclass
class Trajectory:
  """Return x[T + 1, N, d] and observations; states as NumPy arrays."""

  x: np.ndarray
  signatures: list
  start: object
  middle: object
  final: object
  traces: list[int]


@functools.cache
def trajectory(name, num_devices=ONE_LAYOUT, problem='smooth'):
  with jax.enable_x64(True):
    run = engine(name, num_devices)
    state = initial_state(run, problem)
    points = [harness.to_vector(run.mesh.gather(state.params))]
    signatures, traces = [signature(state)], []
    start = harness.to_host(state)
    for t in range(T):
      if t == MIDDLE:
        middle = harness.to_host(state)
      state, new = advance(run, state, [t], problem)
      points += new
      signatures.append(signature(state))
      traces.append(len(run.traces))
    final = harness.to_host(state)
    return Trajectory(
      np.stack(points), signatures, start, middle, final, traces
    )


def signature(state):
  """Structure, shapes, dtypes and weakness of the state's leaves."""
  leaves, treedef = jax.tree.flatten(state)
  # Typed keys have no weak type to have.
  return treedef, [
    (x.shape, x.dtype, getattr(x, 'weak_type', False)) for x in leaves
  ]


def gradients(x, problem='smooth'):
  """G_i^t of a trajectory, [T, N, d], at x_i^{t-1}."""
  p = PROBLEMS[problem]
  return np.stack(
    [[p.gradient(i, x[t - 1, i], t) for i in range(N)] for t in range(1, T + 1)]
  )


def assert_close(actual, desired):
  # float64 sums of 8 terms in another order, over 24 steps of values near 1.
  np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-12)


def names(condition=lambda row: True):
  return [name for name, row in TABLE.items() if condition(row)]


def layouts(name):
  if not TABLE[name].every_layout:
    return (ONE_LAYOUT,)
  if name in SELECTIVE:
    return LAYOUTS
  extreme = EXTREMES[list(TABLE).index(name) % 2]
  return tuple(sorted((extreme, ONE_LAYOUT)))


def on_every_layout():
  return [(f'{name}_on_{d}', name, d) for name in TABLE for d in layouts(name)]


class EveryAlgorithmTest(parameterized.TestCase):
  """The laws that hold of every row of the table."""

  @parameterized.named_parameters(on_every_layout())
  def test_equals_the_papers_double_loop_at_every_step(self, name, num_devices):
    assert_close(trajectory(name, num_devices).x, oracle(name))

  @parameterized.parameters(*names(lambda row: row.every_layout))
  def test_does_not_depend_on_the_number_of_devices(self, name):
    first, *others = layouts(name)
    for num_devices in others:
      assert_close(trajectory(name, num_devices).x, trajectory(name, first).x)

  @parameterized.parameters(*TABLE)
  def test_keeps_structure_shapes_and_dtypes(self, name):
    seen = trajectory(name).signatures
    for after in seen[1:]:
      self.assertEqual(after, seen[0])
    for shape, dtype, weak in seen[0][1]:
      self.assertEqual(shape[0], ONE_LAYOUT)
      self.assertFalse(weak, (shape, dtype))

  @parameterized.parameters(*TABLE)
  def test_is_traced_once(self, name):
    traces = trajectory(name).traces
    self.assertEqual(traces, [traces[0]] * T)

  @parameterized.parameters(*TABLE)
  def test_same_seed_gives_the_same_bits(self, name):
    first = trajectory(name)
    with jax.enable_x64(True):
      run = engine(name, ONE_LAYOUT)
      state, points = advance(run, initial_state(run), range(T))
      final = harness.to_host(state)
    np.testing.assert_array_equal(np.stack(points), first.x[1:])
    jax.tree.map(np.testing.assert_array_equal, final, first.final)

  @parameterized.parameters(*TABLE)
  def test_resumed_equals_uninterrupted_bit_for_bit(self, name):
    whole = trajectory(name)
    with jax.enable_x64(True):
      run = engine(name, ONE_LAYOUT)
      # The first step may trace, because programs are dropped when many.
      state, _ = advance(run, harness.from_host(run.mesh, whole.start), [0])
      traces = len(run.traces)
      advance(run, state, [1])
      state, points = advance(
        run, harness.from_host(run.mesh, whole.middle), range(MIDDLE, T)
      )
      final = harness.to_host(state)
    np.testing.assert_array_equal(np.stack(points), whole.x[MIDDLE + 1 :])
    jax.tree.map(np.testing.assert_array_equal, final, whole.final)
    self.assertLen(run.traces, traces)


class ResizingTest(parameterized.TestCase):
  """A checkpoint of N replicas, in the middle of a round, onto fewer."""

  @parameterized.parameters(*TABLE)
  def test_keeps_the_invariants_of_the_algorithm(self, name):
    middle = trajectory(name).middle
    with jax.enable_x64(True):
      saved = harness.leaves_of(middle)
      try:
        change = elastic_laws.resized(name, saved, N, N // 2)
      except ValueError as refusal:
        self.assertRegex(str(refusal), ONLY_N.get(name, 'no row'))
        return
      self.assertNotIn(name, ONLY_N)
      elastic_laws.check(change)


def is_sent(entry, step):
  return isinstance(entry, Traffic) and (
    entry.fires is None or entry.fires[step]
  )


def selective_step(run, state):
  """The first step with a message, if possible one not from everybody."""
  shapes, first = pr.engine.replica_shapes(state), None
  spent = run.algorithm.cost(shapes, N, np.arange(8))
  for t in range(8):
    waits = [entry.waits for entry in spent if is_sent(entry, t)]
    if any(x not in (1, N) for x in waits):
      return t
    first = t if waits and first is None else first
  return first


def after_a_step(run, host, step, ill, spoil):
  """float[N, d] after a step before which one replica was changed."""

  def changed(x):
    flat = x.reshape((N, *x.shape[2:])).copy()
    flat[ill] = spoil(flat[ill])
    return flat.reshape(x.shape)

  state = host.replace(params=jax.tree.map(changed, host.params))
  state = harness.from_host(run.mesh, state)
  return advance(run, state, [step])[1][0]


class NotFiniteTest(parameterized.TestCase):
  """A replica's NaN reaches those that its finite values reach."""

  def reached(self, name, num_devices, replicas):
    """(bool[R, N], who changes with a replica, and who becomes NaN with it)."""
    with jax.enable_x64(True):
      run = engine(name, num_devices)
      start = trajectory(name, num_devices).start
      step = selective_step(run, start)
      state = harness.from_host(run.mesh, start)
      state, _ = advance(run, state, range(step))
      host = harness.to_host(state)
      hears, is_nan = [], []
      same = after_a_step(run, host, step, 0, lambda x: x)
      for ill in replicas:
        moved = after_a_step(run, host, step, ill, lambda x: x + 1)
        spoiled = after_a_step(run, host, step, ill, lambda x: x * np.nan)
        hears.append((moved != same).any(axis=1))
        is_nan.append(np.isnan(spoiled).any(axis=1))
    return np.stack(hears), np.stack(is_nan)

  @parameterized.parameters(
    *(
      (name, d)
      for name in SELECTIVE
      for d in (1, 2)
      if d == ONE_LAYOUT or TABLE[name].every_layout
    )
  )
  def test_a_nan_goes_where_values_go(self, name, num_devices):
    hears, is_nan = self.reached(name, num_devices, [3])
    # NaN is not far enough for the one to send, and the other leaves it out.
    if name in ('sparq_sgd', 'edit'):
      self.assertFalse((is_nan & ~hears).any())
    else:
      np.testing.assert_array_equal(is_nan, hears)

  @parameterized.parameters(1, 2)
  def test_a_client_that_is_not_drawn_does_no_harm(self, num_devices):
    hears, is_nan = self.reached('fedavg', num_devices, range(N))
    self.assertEqual(hears.any(axis=1).sum(), 3)
    np.testing.assert_array_equal(is_nan, hears)


class MeanTest(parameterized.TestCase):
  """What a doubly stochastic mixing keeps, and a full average makes."""

  @parameterized.parameters(
    *names(lambda row: row.full_sync and row.order in ('C', 'S'))
  )
  def test_replicas_are_bit_equal_just_after_a_full_sync(self, name):
    row = TABLE[name]
    for num_devices in layouts(name):
      x = trajectory(name, num_devices).x
      for t in range(1, T + 1):
        equal = (x[t] == x[t][0]).all()
        self.assertEqual(equal, t in row.full_sync, (t, num_devices))

  @parameterized.parameters(
    *names(lambda row: row.full_sync and row.order == 'A')
  )
  def test_order_a_is_the_mean_less_each_ones_own_step(self, name):
    row = TABLE[name]
    x = trajectory(name).x
    g = gradients(x)
    v = np.zeros_like(x[0])
    for t in range(1, T + 1):
      if t in row.full_sync and 'averaged' in name:
        v = np.broadcast_to(v.mean(axis=0), v.shape)
      if t in row.full_sync and 'reset' in name:
        v = np.zeros_like(v)
      v = row.momentum * v + g[t - 1]
      if t in row.full_sync:
        before_step = x[t] + LEARNING_RATE * v
        mean = np.broadcast_to(x[t - 1].mean(axis=0), x[t].shape)
        assert_close(before_step, mean)
        self.assertGreater(np.abs(x[t] - x[t][0]).max(), 1e-3)

  @parameterized.parameters(
    *names(lambda row: row.keeps_mean and row.order in ('A', 'C', 'S'))
  )
  def test_the_mean_moves_by_the_mean_step_at_every_step(self, name):
    # PAPERS 2.i; momentum is linear, so the mean buffer follows the mean G.
    row = TABLE[name]
    x = trajectory(name).x
    g = gradients(x).mean(axis=1)
    v = np.zeros_like(g[0])
    for t in range(1, T + 1):
      v = row.momentum * v + g[t - 1]
      step = x[t].mean(axis=0) - x[t - 1].mean(axis=0)
      assert_close(step, -LEARNING_RATE * v)

  @parameterized.parameters('pr_sgd', 'k_avg', 'one_shot', 'd_psgd_dense')
  def test_common_hessian_gives_one_mean_whatever_the_averaging(self, name):
    # PAPERS 2.v: independent of the interval, of W, and of the order.
    mean = trajectory(name, problem='common_hessian').x.mean(axis=1)
    ssgd = trajectory('ssgd', problem='common_hessian').x.mean(axis=1)
    assert_close(mean, ssgd)

  def test_without_a_common_hessian_the_mean_depends_on_the_interval(self):
    mean = trajectory('k_avg').x.mean(axis=1)
    ssgd = trajectory('ssgd').x.mean(axis=1)
    self.assertGreater(np.abs(mean - ssgd).max(), 1e-3)


class SpecialCasesTest(parameterized.TestCase):
  """The identities of PAPERS 2 and 4, between runs of the library."""

  @parameterized.parameters(
    ('k_avg_1', 'ssgd'),
    ('diffusion_mean', 'ssgd'),
    ('hier_avg_always', 'ssgd'),
    ('hier_avg_groups_of_1', 'k_avg_4'),
    ('hier_avg_equal_periods', 'k_avg_4'),
    ('hier_avg_one_group', 'k_avg_2'),
    ('pr_sgd_1', 'd_psgd_mean'),
    ('pr_sgd_1', 'd_psgd_dense_mean'),
  )
  def test_special_case_collapses(self, special, general):
    assert_close(trajectory(special).x, trajectory(general).x)

  @parameterized.parameters(
    ('pr_sgd_1', 'ssgd', 1e-4),
    ('pr_sgd', 'k_avg_4', 1e-4),
    ('hier_avg', 'k_avg_8', 1e-4),
    ('hier_avg', 'k_avg_2', 1e-4),
    ('pr_sgd', 'pr_sgd_averaged_buffers', 1e-4),
    ('pr_sgd', 'pr_sgd_reset_buffers', 1e-4),
  )
  def test_these_are_different_algorithms(self, one, other, at_least):
    difference = trajectory(one).x - trajectory(other).x
    self.assertGreater(np.abs(difference).max(), at_least)

  def test_order_b_with_the_mean_has_the_mean_of_ssgd(self):
    # Order B is C read half a step later: its mean is the synchronous model.
    mean = trajectory('combine_then_adapt_mean').x.mean(axis=1)
    assert_close(mean, trajectory('ssgd').x[:, 0])


def _quadratic_1d(params, model_state, target, key):
  del key
  return 0.5 * (params - target) ** 2, (model_state, {})


class HeterogeneousFixedPointTest(parameterized.TestCase):
  """PAPERS 2.vi: Algorithm 3 on f_i = (x - e_i)^2 / 2 is biased."""

  @parameterized.product(
    case=((0.2, 2.51075, 60), (0.02, 2.87556, 600), (0.002, 2.91257, 6000)),
    num_devices=(1, 3),
  )
  def test_converges_to_the_weighted_mean(self, case, num_devices):
    gamma, expected, rounds = case
    targets, local_steps = np.array([0.0, 1.0, 4.0]), (1, 3, 8)
    algorithm = pr.pr_sgd_heterogeneous(
      optax.sgd(gamma), local_steps=local_steps
    )
    with jax.enable_x64(True):
      mesh = pr.engine.ReplicaMesh(3, num_devices)
      state = pr.engine.create_train_state(mesh, algorithm, np.float64(2.0))
      train_steps = pr.engine.make_resident_train_steps(
        mesh,
        algorithm,
        _quadratic_1d,
        lambda data, step, replica, key: data[replica],
      )
      state, _ = train_steps(state, mesh.replicate(targets), 8 * rounds)
      x = mesh.gather(state.params)
    weights = 1 - (1 - gamma) ** np.array(local_steps)
    np.testing.assert_array_equal(x, x[0])
    np.testing.assert_allclose(x[0], weights @ targets / weights.sum(), 1e-9)
    self.assertAlmostEqual(float(x[0]), expected, places=5)


def _noise_loss(params, model_state, noise, key):
  del key
  return params @ noise, (model_state, {})


class DriftTest(parameterized.TestCase):
  """PAPERS 2.vii and 4: zero gradient and unit noise in many coordinates.

  The gradient of x . noise is the noise, so consensus_distance / dim estimates
  the drift per coordinate, with a relative error of sqrt(2 / 7 / dim) at a
  step: 0.4 % for dim = 20000; 2 % are five of these.
  """

  DIM = 20_000
  GAMMA = 0.5

  def drift(self, algorithm, num_steps):
    """(1/N) sum_i |x_i - xbar|^2 / (dim gamma^2) after each step."""
    mesh = pr.engine.ReplicaMesh(N, ONE_LAYOUT)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(num_steps, N, self.DIM)).astype(np.float32)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(self.DIM, np.float32)
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, _noise_loss)
    drift = []
    for step_noise in noise:
      batch = step_noise.reshape(ONE_LAYOUT, 1, N // ONE_LAYOUT, self.DIM)
      state, _ = train_steps(state, mesh.place_per_device(batch))
      x = mesh.gather(state.params).astype(np.float64)
      drift.append(reference.consensus_distance(x) / self.DIM / self.GAMMA**2)
    return np.array(drift)

  def test_just_after_k_avg(self):
    tx = optax.sgd(self.GAMMA)
    drift = self.drift(pr.k_avg(tx, period=4), 12)
    expected = np.array([1, 2, 3, 0] * 3) * (1 - 1 / N)
    np.testing.assert_allclose(drift, expected, rtol=0.02, atol=1e-9)
    # The mean over an interval is (1 - 1/N) (I - 1) / 2.
    self.assertAlmostEqual(expected.mean(), (1 - 1 / N) * (4 - 1) / 2)

  def test_just_before_averaging_is_due(self):
    # Averaging first in a step shows x before it at the end of the one before.
    algorithm = pr.chain(
      pr.at(lambda step: step % 4 == 0, pr.sync(pr.mixing.mean())),
      pr.gradient(),
      pr.local_update(optax.sgd(self.GAMMA)),
    )
    expected = np.array([1, 2, 3, 4] * 3) * (1 - 1 / N)
    np.testing.assert_allclose(self.drift(algorithm, 12), expected, rtol=0.02)
    self.assertAlmostEqual(expected.mean(), (1 - 1 / N) * (4 + 1) / 2)

  def test_hier_avg_rises_with_local_period_and_falls_with_group_size(self):
    k1, k2, s = 2, 8, 4
    algorithm = pr.chain(
      pr.at(lambda step: step % k1 == 0, pr.sync(pr.mixing.group_mean(s))),
      pr.at(lambda step: step % k2 == 0, pr.sync(pr.mixing.mean())),
      pr.gradient(),
      pr.local_update(optax.sgd(self.GAMMA)),
    )
    t = np.arange(16) % k2 + 1
    inside = ((t - 1) % k1 + 1) * (1 - 1 / N)
    between = (t - 1) // k1 * k1 * (1 / s - 1 / N)
    # Between two groups there is one degree of freedom per coordinate: 1 %.
    np.testing.assert_allclose(
      self.drift(algorithm, 16), inside + between, rtol=0.05
    )


class ErrorsTest(parameterized.TestCase):
  """Errors name what was expected and what came."""

  @parameterized.parameters(0, -1, 2.0, True, None, '4')
  def test_periods_are_positive_integers(self, bad):
    message = rf'must be an integer >= 1, got {bad!r}'
    with self.assertRaisesRegex(ValueError, f'period {message}'):
      pr.pr_sgd(SGD, period=bad)
    with self.assertRaisesRegex(ValueError, f'period {message}'):
      pr.k_avg(SGD, period=bad)
    with self.assertRaisesRegex(ValueError, f'num_steps {message}'):
      pr.one_shot_averaging(SGD, num_steps=bad)
    good = {'local_period': 2, 'global_period': 4, 'group_size': 2}
    for name in good:
      with self.assertRaisesRegex(ValueError, f'{name} {message}'):
        pr.hier_avg(SGD, **{**good, name: bad})

  def test_global_period_is_a_multiple(self):
    with self.assertRaisesRegex(
      ValueError,
      'global_period must be a multiple of local_period, got 6 and 4',
    ):
      pr.hier_avg(SGD, local_period=4, global_period=6, group_size=2)

  def test_group_size_divides_the_replicas(self):
    algorithm = pr.hier_avg(SGD, local_period=2, global_period=4, group_size=3)
    with self.assertRaisesRegex(
      ValueError, r'divide the 8 replicas, got 3; use one of \[1, 2, 4, 8\]'
    ):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(8), algorithm, np.zeros(2)
      )

  def test_matrix_is_of_the_replicas(self):
    algorithm = pr.d_psgd(SGD, mixing=pr.mixing.dense(np.eye(4)))
    with self.assertRaisesRegex(ValueError, r'\[8, 8\].*got \(4, 4\)'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(8), algorithm, np.zeros(2)
      )

  @parameterized.parameters(
    lambda tx: pr.ssgd(tx),
    lambda tx: pr.k_avg(tx, period=2),
    lambda tx: pr.pr_sgd(tx, period=2),
    lambda tx: pr.d_psgd(tx),
  )
  def test_optimizer_is_optax(self, make):
    with self.assertRaisesRegex(ValueError, 'optax transformation.*got 0.1'):
      make(0.1)

  def test_local_sgd_is_k_avg(self):
    self.assertIs(pr.local_sgd, pr.k_avg)


if __name__ == '__main__':
  absltest.main()
