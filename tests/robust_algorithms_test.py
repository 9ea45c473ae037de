"""Averages that survive bad or missing replicas."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows import LOCAL_STEPS, PLAIN, SGD, N, T
from tests.rows.robust import PENALTY

PROBLEM = reference.make_problem(N, T)
ALIKE = PROBLEM._replace(
  **{
    name: np.broadcast_to(x[:1], x.shape)
    for name, x in PROBLEM._asdict().items()
    if name in ('hessian', 'target', 'features')
  },
  noise=np.broadcast_to(PROBLEM.noise[:, :1], PROBLEM.noise.shape),
)
OUTER = optax.sgd(0.7, momentum=0.8, nesterov=True)


def run(algorithm, problem=PROBLEM):
  return harness.run_problem(algorithm, problem).x


def averaged(average, starts, weight=None, x0=0.0):
  """`average` once, of replicas that start at the given points."""
  n = len(starts)
  mesh = pr.engine.ReplicaMesh(n, 2)
  weights = () if weight is None else (pr.remember(weight=weight),)
  algorithm = pr.chain(pr.remember(x0='params'), *weights, average)
  state = pr.engine.create_train_state(
    mesh, algorithm, {'w': np.full(3, x0, np.float32)}
  )
  points = np.asarray(starts, np.float32)
  state = state.replace(params={'w': mesh.place(points)})
  step = pr.engine.make_train_steps(mesh, algorithm, lambda *args: None)
  state, _ = step(state, mesh.place_per_device(np.zeros((2, 1, n // 2))))
  return mesh.gather(state.params)['w']


class PenalizedTest(parameterized.TestCase):
  def test_equal_replicas_without_anomaly_or_clip_are_diloco(self):
    edit = run(pr.edit(SGD, period=4), ALIKE)
    assert_close(edit, run(pr.diloco(SGD, period=4, outer=OUTER), ALIKE))

  def test_weighs_unequal_ones(self):
    edit = run(pr.edit(SGD, period=4))
    diloco = run(pr.diloco(SGD, period=4, outer=OUTER))
    self.assertGreater(np.abs(edit - diloco).max(), 1e-3)

  @parameterized.parameters('threshold', 'clip_norm')
  def test_each_part_of_it_matters(self, name):
    some = run(pr.edit(SGD, period=4, **PENALTY))
    without = run(pr.edit(SGD, period=4, **{**PENALTY, name: float('inf')}))
    self.assertGreater(np.abs(some - without).max(), 1e-3)

  def test_equal_norms_are_averaged(self):
    starts = np.eye(3)[[0, 1, 2, 2]]
    got = averaged(pr.algorithms.average_penalized(), starts)
    np.testing.assert_allclose(got, np.tile(starts.mean(0), (4, 1)), rtol=1e-6)

  def test_large_norms_have_weights(self):
    # exp(-n) of float32 is 0 for n > 104.
    starts = np.full((4, 3), 500.0)
    got = averaged(pr.algorithms.average_penalized(), starts)
    np.testing.assert_allclose(got, starts, rtol=1e-6)

  @parameterized.parameters(np.nan, np.inf)
  def test_what_is_not_finite_is_left_out(self, bad):
    starts = np.eye(3)[[0, 1, 2, 2]]
    starts[2] = bad
    got = averaged(pr.algorithms.average_penalized(), starts)
    want = starts[[0, 1, 3]].mean(axis=0)
    np.testing.assert_allclose(got, np.tile(want, (4, 1)), rtol=1e-6)

  def test_all_return_to_the_start_if_none_is_left(self):
    got = averaged(
      pr.algorithms.average_penalized(), np.full((4, 3), np.nan), x0=2.0
    )
    np.testing.assert_array_equal(got, np.full((4, 3), 2.0))

  @parameterized.parameters(np.nan, 1000.0)
  def test_training_continues_after_one_bad_round(self, bad):
    noise = PROBLEM.noise.copy()
    noise[13, 3] *= bad  # in the fourth round
    algorithm = pr.edit(
      PLAIN, period=4, warmup_rounds=2, norm_rate=0.5, outer=optax.sgd(1.0)
    )
    good = run(algorithm, PROBLEM)
    hurt = run(algorithm, PROBLEM._replace(noise=noise))
    self.assertTrue(np.isfinite(hurt[16:]).all())
    # Less than the other seven differ among themselves in a round.
    self.assertLess(np.abs(hurt[16] - good[16]).max(), 0.2)
    self.assertGreater(np.abs(hurt[16] - good[16]).max(), 0)


class RadialTest(parameterized.TestCase):
  def test_equal_differences_are_averaged_to_themselves(self):
    starts = np.tile([1.0, -2.0, 0.5], (4, 1))
    got = averaged(pr.algorithms.average_radial(), starts)
    np.testing.assert_allclose(got, starts, rtol=1e-6)

  @parameterized.parameters(8, 32)
  def test_length_does_not_shrink_with_the_number_of_replicas(self, n):
    starts = np.random.default_rng(0).normal(size=(n, 3)) + 0.1
    starts /= np.linalg.norm(starts, axis=1, keepdims=True)
    got = averaged(pr.algorithms.average_radial(), starts)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=1e-5)
    mean = np.linalg.norm(starts.mean(axis=0))
    self.assertLess(mean, 0.9)

  def test_weights_are_those_of_the_replicas(self):
    starts = np.array([[1.0, 0, 0], [0, 2, 0], [0, 3, 0], [0, 0, 4]])
    weights = np.array([1.0, 2, 3, 0])
    got = averaged(
      pr.algorithms.average_radial(), starts, pr.per_replica(weights)
    )
    radius = weights @ np.linalg.norm(starts, axis=1) / weights.sum()
    way = weights @ (starts / np.linalg.norm(starts, axis=1)[:, None])
    want = radius * way / np.linalg.norm(way)
    np.testing.assert_allclose(got, np.tile(want, (4, 1)), rtol=1e-6)

  def test_nobody_moved(self):
    got = averaged(pr.algorithms.average_radial(), np.zeros((4, 3)))
    np.testing.assert_array_equal(got, np.zeros((4, 3)))


class DecoupledTest(parameterized.TestCase):
  def test_all_there_and_alike_are_diloco(self):
    decoupled = run(pr.decoupled_diloco(SGD, local_steps=[4] * N), ALIKE)
    assert_close(decoupled, run(pr.diloco(SGD, period=4), ALIKE))

  def test_unlike_replicas_are_not(self):
    decoupled = run(pr.decoupled_diloco(SGD, local_steps=[4] * N))
    diloco = run(pr.diloco(SGD, period=4))
    self.assertGreater(np.abs(decoupled - diloco).max(), 1e-3)

  def test_an_absent_replica_may_be_broken(self):
    # Whoever is absent in the first round computes nonsense in it.
    _, keys = harness.stage_keys(T, (2, 0), N)
    rank = np.asarray(jax.random.permutation(keys[7], N))
    noise = PROBLEM.noise.copy()
    noise[:8, rank >= 5] = np.nan
    algorithm = pr.decoupled_diloco(PLAIN, local_steps=LOCAL_STEPS, quorum=5)
    hurt = run(algorithm, PROBLEM._replace(noise=noise))
    self.assertTrue(np.isnan(hurt[7]).any())
    assert_close(hurt[8:], run(algorithm)[8:])


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('threshold', 0, 'threshold must be > 0, got 0'),
    ('norm_rate', 0, r'norm_rate must be in \(0, 1\], got 0'),
    ('clip_norm', 0, 'clip_norm must be > 0, got 0'),
    ('warmup_rounds', -1, 'warmup_rounds must be an integer >= 0, got -1'),
    ('period', 0, 'period must be an integer >= 1, got 0'),
  )
  def test_edit(self, name, bad, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.edit(SGD, **{'period': 4, name: bad})

  @parameterized.parameters(
    ({'local_steps': [0]}, 'local_steps must be an integer >= 1, got 0'),
    ({'quorum': 3}, 'quorum must be at most the 2 replicas, got 3'),
  )
  def test_decoupled(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.decoupled_diloco(SGD, **{'local_steps': [1, 2], **options})


if __name__ == '__main__':
  absltest.main()
