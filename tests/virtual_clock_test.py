"""The stages of a virtual clock: who begins, who is done, who averages."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference

N = 4
DURATIONS = (1, 2, 3, 3)
T = 12
PROBLEM = reference.make_problem(N, T)


def gradient_at(x, i, t):
  return PROBLEM.gradient(i, x, t)


class DelayedGradientTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_metrics_are_of_those_that_begin(self, num_devices):
    algorithm = pr.chain(pr.delayed_gradient(DURATIONS))
    run = harness.run_problem(algorithm, PROBLEM, num_devices)
    steps = np.arange(T)[:, None]
    begins = steps % np.array(DURATIONS) == 0
    np.testing.assert_array_equal(run.metrics['active'], begins)
    want = [
      [PROBLEM.loss(i, PROBLEM.start, t) for i in range(N)]
      for t in range(1, T + 1)
    ]
    np.testing.assert_allclose(
      run.metrics['loss'], np.where(begins, want, 0), rtol=0, atol=1e-12
    )

  @parameterized.parameters(1, 4)
  def test_gradient_is_held_until_the_next_is_begun(self, num_devices):
    # Applied at every step, what is held is seen.
    algorithm = pr.chain(
      pr.delayed_gradient(DURATIONS), pr.local_update(optax.sgd(0.1))
    )
    x = harness.run_problem(algorithm, PROBLEM, num_devices).x
    for i, duration in enumerate(DURATIONS):
      for t in range(1, T + 1):
        begun = (t - 1) // duration * duration
        g = gradient_at(x[begun, i], i, begun + 1)
        np.testing.assert_allclose(
          x[t, i], x[t - 1, i] - 0.1 * g, rtol=0, atol=1e-12
        )

  def test_work_is_of_those_that_begin(self):
    (work,) = pr.delayed_gradient(DURATIONS).cost((), N, np.arange(6))
    want = np.arange(6)[:, None] % np.array(DURATIONS) == 0
    np.testing.assert_array_equal(work.active, want)

  def test_model_state_is_of_those_that_begin(self):
    def loss(params, model_state, batch, key):
      del batch, key
      return (params**2).sum(), (model_state + 1, {})

    algorithm = pr.chain(pr.delayed_gradient(DURATIONS))
    mesh = pr.ReplicaMesh(N, 2)
    state = pr.create_train_state(mesh, algorithm, np.ones(2), np.float32(0))
    train_steps = pr.make_train_steps(mesh, algorithm, loss)
    state, _ = train_steps(state, mesh.place_per_device(np.zeros((2, 6, 2))))
    np.testing.assert_array_equal(mesh.gather(state.model_state), [6, 3, 2, 2])


class SyncDoneTest(parameterized.TestCase):
  """Without gradients, from x_i = e_i."""

  def run_from_units(self, mixing, durations, num_steps, num_devices=2):
    algorithm = pr.chain(pr.sync_done(mixing, durations))
    mesh = pr.ReplicaMesh(N, num_devices)
    x = []
    with jax.enable_x64(True):
      state = pr.create_train_state(
        mesh, algorithm, np.eye(N), per_replica=True
      )
      train_steps = pr.make_train_steps(mesh, algorithm, lambda *args: 0)
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
    mixing = pr.mixing.sparse(lambda n: fixed)
    x = self.run_from_units(mixing, (1, 9, 2, 4), 3, num_devices)
    want = np.eye(N)
    for t, met in enumerate((((0, 1),), ((0, 2),), ((0, 1),))):
      # Replica 0 is always done; at t = 1 replica 2 is too, with it.
      for pair in met:
        want[list(pair)] = want[list(pair)].mean(axis=0)
      np.testing.assert_array_equal(x[t], want)

  def test_ticks_in_which_nobody_is_done_are_no_rounds(self):
    # Otherwise a period of two would always meet the same pairs.
    halves = [np.kron(np.eye(2), np.full((2, 2), 0.5))]
    halves.append(halves[0][np.ix_([0, 2, 1, 3], [0, 2, 1, 3])])
    mixing = pr.mixing.sparse(lambda n: np.stack(halves))
    x = self.run_from_units(mixing, (2, 2, 2, 2), 4)
    np.testing.assert_array_equal(x[0], np.eye(N))
    np.testing.assert_array_equal(x[1], halves[0])
    np.testing.assert_array_equal(x[2], halves[0])
    np.testing.assert_array_equal(x[3], np.full((N, N), 1 / N))

  @parameterized.parameters(
    (lambda: pr.mean(), np.full((N, N), 1 / N)),
    (
      lambda: pr.group_mean(2),
      [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    ),
  )
  def test_groups_may_be_larger(self, make, want):
    x = self.run_from_units(make(), (1, 9, 9, 9), 1)
    np.testing.assert_array_equal(x[0], want)

  def test_the_mean_is_kept(self):
    x = self.run_from_units(pr.random_matching(), DURATIONS, T)
    for each in x:
      np.testing.assert_allclose(each.sum(axis=0), 1, rtol=0, atol=1e-15)
    self.assertGreater(np.abs(x[-1] - np.eye(N)).max(), 0.1)

  def test_cost_is_a_model_and_a_flag_and_nobody_waits(self):
    shapes = pr.Replica(params=jax.ShapeDtypeStruct((5,), jnp.float32))
    stage = pr.sync_done(pr.random_matching(), (2, 3, 2, 6))
    (sent,) = stage.cost(shapes, N, np.arange(6))
    self.assertEqual(sent.bytes_sent, (5 + 1) * 4)
    self.assertEqual((sent.latencies, sent.tier), (1, 'neighbour'))
    np.testing.assert_array_equal(sent.fires, [0, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(sent.waits, np.eye(N, dtype=bool)[None])

  def test_is_conditional(self):
    stage = pr.chain(pr.sync_done(pr.random_matching(), (2,) * N))
    mesh = pr.ReplicaMesh(N, N)
    state = pr.create_train_state(mesh, stage, np.zeros(2))
    train_steps = pr.make_train_steps(mesh, stage, lambda *args: 0)
    none = mesh.place_per_device(np.zeros((N, 1, 1)))
    found = harness.collectives_of(train_steps, state, none)
    self.assertNotEmpty(found)
    self.assertTrue(all(sent.conditional for sent in found))


class ApplyDoneTest(parameterized.TestCase):
  @parameterized.parameters(1, 4)
  def test_only_those_that_are_done_step(self, num_devices):
    # The rate is that of the tick, whoever sat out.
    tx = optax.sgd(lambda step: 0.01 * (step + 1))
    algorithm = pr.chain(
      pr.gradient(), pr.apply_done(DURATIONS, pr.local_update(tx))
    )
    x = harness.run_problem(algorithm, PROBLEM, num_devices).x
    for t in range(1, T + 1):
      for i, duration in enumerate(DURATIONS):
        g = gradient_at(x[t - 1, i], i, t) if t % duration == 0 else 0.0
        np.testing.assert_allclose(
          x[t, i], x[t - 1, i] - 0.01 * t * g, rtol=0, atol=1e-12
        )

  @parameterized.parameters(1, 4)
  def test_the_others_keep_all_they_have(self, num_devices):
    tx = optax.sgd(0.1, momentum=0.9)
    algorithm = pr.chain(
      pr.gradient(), pr.apply_done((1, 99, 99, 99), pr.local_update(tx))
    )
    run = harness.run_problem(algorithm, PROBLEM, num_devices)
    np.testing.assert_array_equal(run.x[:, 1:], run.x[:1, 1:].repeat(T + 1, 0))
    (trace,) = [
      leaf
      for leaf in jax.tree.leaves(run.mesh.gather(run.state.opt_state))
      if leaf.ndim == 2
    ]  # of `b`
    np.testing.assert_array_equal(trace.any(axis=1), [True] + [False] * 3)
    self.assertTrue((run.metrics['loss'] != 0).all())


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    lambda durations: pr.delayed_gradient(durations),
    lambda durations: pr.sync_done(pr.random_matching(), durations),
    lambda durations: pr.apply_done(durations, pr.local_update(optax.sgd(0.1))),
  )
  def test_durations(self, make):
    for bad in (0, 1.5, True):
      with self.assertRaisesRegex(
        ValueError, f'durations must be an integer >= 1, got {bad}'
      ):
        make([1, 2, bad, 1])
    with self.assertRaisesRegex(ValueError, 'one number per replica, got none'):
      make([])
    with self.assertRaisesRegex(ValueError, 'each of the 4 replicas, got 3'):
      pr.create_train_state(
        pr.ReplicaMesh(4), pr.chain(make([1, 2, 3])), np.zeros(2)
      )

  @parameterized.parameters(pr.ring, pr.one_peer_exponential, pr.star)
  def test_mixing_is_of_groups(self, make):
    algorithm = pr.sync_done(make(), DURATIONS)
    with self.assertRaisesRegex(
      ValueError, r'pairs or other groups.*use pr.random_matching\(\)'
    ):
      pr.create_train_state(pr.ReplicaMesh(N), algorithm, np.zeros(2))

  def test_mixing_is_one(self):
    with self.assertRaisesRegex(ValueError, 'such as pr.random_match.*got 3'):
      pr.sync_done(3, DURATIONS)

  @parameterized.parameters(lambda: pr.gradient(), lambda: pr.sync(pr.mean()))
  def test_what_is_applied_costs_nothing(self, make):
    algorithm = pr.apply_done(DURATIONS, make())
    with self.assertRaisesRegex(ValueError, 'neither communicate nor take'):
      pr.create_train_state(pr.ReplicaMesh(N), algorithm, np.zeros(2))


if __name__ == '__main__':
  absltest.main()
