"""The virtual clock: which replicas begin, finish and average."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.algorithms import virtual_clock
from tests import harness, reference

N = 4
DURATIONS = (1, 2, 3, 3)
SPEEDS = (6, 3, 2, 2)
T = 12
PROBLEM = reference.make_problem(N, T)
# Each replica by itself: D-PSGD without neighbors.
ALONE = pr.mixing.group_mean(1)


def gradient_at(x, i, t):
  return PROBLEM.gradient(i, x, t)


class ClockTest(parameterized.TestCase):
  def test_durations_are_of_the_speeds(self):
    self.assertEqual(virtual_clock.durations(SPEEDS), DURATIONS)
    self.assertEqual(virtual_clock.durations((7, 7)), (1, 1))

  def test_one_begins_after_it_ends(self):
    # Of the rules NumPy arrays and traced ones give the same.
    steps, replicas = np.arange(T)[:, None], np.arange(N)
    traced = [jnp.asarray(x) for x in (steps, replicas)]
    begins, ends = (
      rule(DURATIONS) for rule in (virtual_clock.begins, virtual_clock.ends)
    )
    for rule in (begins, ends):
      np.testing.assert_array_equal(rule.fn(steps, replicas), rule.fn(*traced))
    self.assertTrue(begins.fn(steps, replicas)[0].all())
    np.testing.assert_array_equal(
      begins.fn(steps + 1, replicas), ends.fn(steps, replicas)
    )
    np.testing.assert_array_equal(
      virtual_clock.any_ends(DURATIONS)(np.arange(T)),
      ends.fn(steps, replicas).any(axis=1),
    )


class HeldGradientTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_is_applied_when_it_is_done(self, num_devices):
    # With the rate of the tick in which it is applied.
    tx = optax.sgd(lambda step: 0.01 * (step + 1))
    algorithm = pr.ad_psgd(tx, speeds=SPEEDS, mixing=ALONE)
    run = harness.run_problem(algorithm, PROBLEM, num_devices)
    for t in range(1, T + 1):
      for i, duration in enumerate(DURATIONS):
        begun = t - duration
        g = gradient_at(run.x[begun, i], i, begun + 1)
        step = 0.01 * t * g if t % duration == 0 else 0.0
        np.testing.assert_allclose(
          run.x[t, i], run.x[t - 1, i] - step, rtol=0, atol=1e-12
        )

  @parameterized.parameters(1, 4)
  def test_the_others_keep_all_they_have(self, num_devices):
    tx = optax.sgd(0.1, momentum=0.9)
    algorithm = pr.ad_psgd(tx, speeds=(13, 1, 1, 1), mixing=ALONE)
    run = harness.run_problem(algorithm, PROBLEM, num_devices)
    np.testing.assert_array_equal(run.x[:, 1:], run.x[:1, 1:].repeat(T + 1, 0))
    (trace,) = [
      leaf
      for leaf in jax.tree.leaves(run.mesh.gather(run.state.opt_state))
      if leaf.ndim == 2
    ]  # of `b`
    np.testing.assert_array_equal(trace.any(axis=1), [True] + [False] * 3)

  def test_model_state_is_of_those_that_begin(self):
    def loss(params, model_state, batch, key):
      del batch, key
      return (params**2).sum(), (model_state + 1, {})

    algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=SPEEDS)
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.ones(2), np.float32(0)
    )
    train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
    state, _ = train_steps(state, mesh.place_per_device(np.zeros((2, 6, 2))))
    np.testing.assert_array_equal(mesh.gather(state.model_state), [6, 3, 2, 2])


def flat(params, model_state, batch, key):
  """A loss without a gradient."""
  del batch, key
  return 0 * params.sum(), (model_state, {})


class MeetingsTest(parameterized.TestCase):
  """Without gradients, from x_i = e_i."""

  def run_from_units(self, mixing, speeds, num_steps, num_devices=2):
    algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=speeds, mixing=mixing)
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    x = []
    with jax.enable_x64(True):
      state = pr.engine.create_train_state(
        mesh, algorithm, np.eye(N), per_replica=True
      )
      train_steps = pr.engine.make_train_steps(mesh, algorithm, flat)
      none = mesh.place_per_device(np.zeros((num_devices, 1, N // num_devices)))
      for _ in range(num_steps):
        state, _ = train_steps(state, none)
        x.append(mesh.gather(state.params))
    return x

  @parameterized.parameters(1, 2, 4)
  def test_only_pairs_of_which_one_is_done(self, num_devices):
    # In turns: (0 1)(2 3), then (0 2)(1 3).
    fixed = np.zeros((2, N, N))
    for k, pairs in enumerate((((0, 1), (2, 3)), ((0, 2), (1, 3)))):
      for i, j in pairs:
        fixed[k][np.ix_([i, j], [i, j])] = 0.5
    mixing = pr.mixing.mixings.sparse(lambda n: fixed)
    # Gradients of 1, 9, 2 and 4 ticks.
    x = self.run_from_units(mixing, (36, 4, 18, 9), 3, num_devices)
    want = np.eye(N)
    for t, met in enumerate((((0, 1),), ((0, 2),), ((0, 1),))):
      # Replica 0 is always done; at t = 1 replica 2 is too, with it.
      for pair in met:
        want[list(pair)] = want[list(pair)].mean(axis=0)
      np.testing.assert_array_equal(x[t], want)

  def test_ticks_in_which_nobody_is_done_are_no_rounds(self):
    # Gradients of 2, 2, 3 and 3 ticks: the first tick is no round.
    halves = [np.kron(np.eye(2), np.full((2, 2), 0.5))]
    halves.append(halves[0][np.ix_([0, 2, 1, 3], [0, 2, 1, 3])])
    mixing = pr.mixing.mixings.sparse(lambda n: np.stack(halves))
    x = self.run_from_units(mixing, (3, 3, 2, 2), 3)
    np.testing.assert_array_equal(x[0], np.eye(N))
    first = np.eye(N)
    first[:2] = 0.5 * (np.eye(N)[0] + np.eye(N)[1])
    np.testing.assert_array_equal(x[1], first)
    second = first.copy()  # 2 and 3 are done, with 0 and 1
    second[[0, 2]] = first[[0, 2]].mean(axis=0)
    second[[1, 3]] = first[[1, 3]].mean(axis=0)
    np.testing.assert_array_equal(x[2], second)

  @parameterized.parameters(
    (lambda: pr.mixing.mean(), np.full((N, N), 1 / N)),
    (
      lambda: pr.mixing.group_mean(2),
      [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ),
  )
  def test_groups_may_be_larger(self, make, want):
    x = self.run_from_units(make(), (9, 1, 1, 1), 1)
    np.testing.assert_array_equal(x[0], want)

  def test_the_mean_is_kept(self):
    x = self.run_from_units(pr.graphs.random_matching(), SPEEDS, T)
    for each in x:
      np.testing.assert_allclose(each.sum(axis=0), 1, rtol=0, atol=1e-15)
    self.assertGreater(np.abs(x[-1] - np.eye(N)).max(), 0.1)

  def test_cost_is_a_model_and_a_flag_and_nobody_waits(self):
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((5,), jnp.float32))
    algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=(3, 2, 3, 1))
    work, sent = algorithm.cost(shapes, N, np.arange(6))
    durations = np.array([2, 3, 2, 6])
    np.testing.assert_array_equal(
      work.active, np.arange(6)[:, None] % durations == 0
    )
    self.assertEqual(sent.bytes_sent, (5 + 1) * 4)
    self.assertEqual((sent.latencies, sent.tier), (1, 'neighbor'))
    np.testing.assert_array_equal(sent.fires, [0, 1, 1, 1, 0, 1])
    self.assertEqual(sent.waits, 1)

  def test_is_conditional(self):
    algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=(3, 3, 2, 2))
    mesh = pr.engine.ReplicaMesh(N, N)
    state = pr.engine.create_train_state(mesh, algorithm, np.zeros(2))
    train_steps = pr.engine.make_train_steps(mesh, algorithm, flat)
    none = mesh.place_per_device(np.zeros((N, 1, 1)))
    found = harness.collectives_of(train_steps, state, none)
    self.assertNotEmpty(found)
    self.assertTrue(all(sent.conditional for sent in found))


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    pr.graphs.ring, pr.graphs.one_peer_exponential, pr.graphs.star
  )
  def test_mixing_is_of_groups(self, make):
    algorithm = pr.ad_psgd(optax.sgd(0.1), speeds=SPEEDS, mixing=make())
    with self.assertRaisesRegex(
      ValueError,
      r'pairs or other disjoint groups.*use pr.graphs.random_matching\(\)',
    ):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )


if __name__ == '__main__':
  absltest.main()
