"""Gossip, push-sum and AD-PSGD: identities, invariants and errors."""

import functools

from absl.testing import absltest, parameterized
import jax
import networkx as nx
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows.compressed import FRACTION
from tests.rows.decentralized import (
  DIRECTED,
  DURATIONS,
  SPARQ,
  SPEEDS,
  sparq_oracle,
  sparq_threshold,
)
from tests.rows.row import LEARNING_RATE, MOMENTUM, SGD, J, N, T

PROBLEM = reference.make_problem(N, T)
TOP_K = pr.codecs.top_k(FRACTION)


def run_problem(algorithm):
  """Run on one device, because a law of every row compares the layouts."""
  return harness.run_problem(algorithm, PROBLEM, num_devices=1)


@functools.cache
def run_of(make):
  """Run the algorithm that `make` makes, once for all tests."""
  return run_problem(make())


def directed_sgp():
  return pr.sgp(SGD, mixing=pr.graphs.graph(DIRECTED))


def step():
  return pr.step(SGD)


def d_psgd():
  return pr.d_psgd(SGD)


def diffusion():
  return pr.diffusion(SGD)


def ssgd():
  return pr.ssgd(SGD)


def ad_psgd():
  return pr.ad_psgd(SGD, speeds=SPEEDS)


def sparq(threshold, compressor=TOP_K):
  return pr.sparq_sgd(
    SGD,
    learning_rate=LEARNING_RATE,
    threshold=threshold,
    compressor=compressor,
    **SPARQ,
  )


@functools.cache
def run_sparq(threshold, compressor):
  return run_problem(sparq(threshold, compressor))


def d_psgd_matching():
  return pr.d_psgd(SGD, mixing=pr.graphs.random_matching())


def d_psgd_drawn_as_ad_psgd():
  """`d_psgd_matching` with its sync at the place of AD-PSGD's in the chain."""
  none, mix = pr.chain(), pr.sync(pr.graphs.random_matching())
  return pr.chain(
    pr.gradient(), none, none, pr.chain(none, mix), pr.local_update(SGD)
  )


class SpecialCasesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'diffusion_with_the_mean_is_k_avg',
      lambda: pr.diffusion(SGD, mixing=pr.mixing.mean(), period=4),
      lambda: pr.k_avg(SGD, period=4),
    ),
    (
      'diffusion_on_the_complete_graph_is_ssgd',
      lambda: pr.diffusion(SGD, mixing=pr.graphs.complete()),
      ssgd,
    ),
    (
      'diffusion_is_on_a_ring_by_default',
      diffusion,
      lambda: pr.diffusion(SGD, mixing=pr.graphs.ring()),
    ),
    (
      'sgp_doubly_stochastic_is_diffusion',
      lambda: pr.sgp(SGD, mixing=pr.graphs.ring()),
      diffusion,
    ),
    (
      'sgp_is_one_peer_exponential_by_default',
      lambda: pr.sgp(SGD),
      lambda: pr.diffusion(SGD, mixing=pr.graphs.one_peer_exponential()),
    ),
    (
      'sgp_with_the_mean_is_ssgd',
      lambda: pr.sgp(SGD, mixing=pr.mixing.mean()),
      ssgd,
    ),
    (
      'ad_psgd_at_equal_speeds_is_d_psgd_in_pairs',
      lambda: pr.ad_psgd(SGD, speeds=[1] * N),
      d_psgd_drawn_as_ad_psgd,
    ),
    (
      'speeds_are_relative',
      ad_psgd,
      lambda: pr.ad_psgd(SGD, speeds=[3 * s for s in SPEEDS]),
    ),
    (
      'ad_psgd_in_one_group_at_equal_speeds_is_order_a',
      lambda: pr.ad_psgd(SGD, speeds=[1] * N, mixing=pr.mixing.mean()),
      lambda: pr.pr_sgd(SGD, period=1),
    ),
  )
  def test_collapses(self, special, general):
    assert_close(run_of(special).x, run_of(general).x)

  @parameterized.named_parameters(
    ('orders', d_psgd, diffusion),
    (
      'what_a_column_stochastic_matrix_does_alone',
      directed_sgp,
      lambda: pr.diffusion(SGD, mixing=pr.graphs.graph(DIRECTED.T)),
    ),
    (
      'staleness',
      ad_psgd,
      d_psgd_matching,
    ),
  )
  def test_these_are_different(self, one, other):
    apart = run_of(one).x - run_of(other).x
    self.assertGreater(np.abs(apart).max(), 1e-3)


class SgpTest(parameterized.TestCase):
  def test_the_mean_of_x_moves_by_the_mean_step(self):
    z = run_of(directed_sgp).x
    w, v = np.ones(N), np.zeros_like(z[0])
    apart = 0.0
    for t in range(1, T + 1):
      before = (w[:, None] * z[t - 1]).mean(axis=0)
      v = MOMENTUM * v + np.stack(
        [PROBLEM.gradient(i, z[t - 1, i], t) for i in range(N)]
      )
      w = DIRECTED @ w
      after = (w[:, None] * z[t]).mean(axis=0)
      step = -LEARNING_RATE * v.mean(axis=0)
      assert_close(after - before, step)
      of_z = z[t].mean(axis=0) - z[t - 1].mean(axis=0)
      apart = max(apart, np.abs(of_z - step).max())
    # The mean of the replicas does not.
    self.assertGreater(apart, 1e-3)

  def test_weights_are_as_many_as_the_replicas(self):
    run = run_of(directed_sgp)
    weight = run.mesh.gather(run.state.registers['weight'])
    self.assertAlmostEqual(weight.sum(), N, places=12)
    self.assertGreater(weight.min(), 0)

  def test_evaluates_the_unbiased_models(self):
    algorithm = directed_sgp()
    run = run_of(directed_sgp)
    with jax.enable_x64(True):
      point, _ = pr.engine.consensus(algorithm, run.state)
    assert_close(harness.to_vector(point), run.x[-1].mean(axis=0))


class AdPsgdTest(parameterized.TestCase):
  def test_the_mean_moves_by_those_that_are_done(self):
    algorithm = pr.ad_psgd(optax.sgd(LEARNING_RATE), speeds=SPEEDS)
    x = run_problem(algorithm).x
    for t in range(1, T + 1):
      total = np.zeros_like(x[0, 0])
      for i, duration in enumerate(DURATIONS):
        if t % duration == 0:
          begun = t - duration
          total += PROBLEM.gradient(i, x[begun, i], begun + 1)
      step = x[t].mean(axis=0) - x[t - 1].mean(axis=0)
      assert_close(step, -LEARNING_RATE * total / N)

  def test_metrics_count_those_that_begin(self):
    run = run_of(ad_psgd)
    begins = np.arange(T)[:, None] % np.array(DURATIONS) == 0
    np.testing.assert_array_equal(run.metrics['active'], begins)
    np.testing.assert_array_equal(run.metrics['loss'] != 0, begins)

  def test_neighbors_may_be_those_of_a_graph(self):
    graph = nx.path_graph(N)  # whose ends are alone in half of the rounds
    mixing = pr.graphs.random_matching(graph)
    matrices = mixing.matrices(N)
    _, keys = harness.stage_keys(T, (3, 1))
    drawn = matrices[
      [int(jax.random.randint(k, (), 0, 2, np.int32)) for k in keys]
    ]
    want = reference.ad_psgd(
      PROBLEM,
      durations=DURATIONS,
      partners=(drawn - np.eye(N) / 4).argmax(axis=-1),
      learning_rate=LEARNING_RATE,
      momentum=MOMENTUM,
    )
    algorithm = pr.ad_psgd(SGD, speeds=SPEEDS, mixing=mixing)
    assert_close(run_problem(algorithm).x, want)

  def test_takes_as_long_as_the_gradients_of_the_fastest(self):
    # 4 ticks are a gradient of the slowest, 4 of the fastest, on any network.
    free = dict.fromkeys(pr.ledger.network.TIERS, pr.ledger.Link(0.0, np.inf))
    network = pr.ledger.Network(links=free, step_time=1.0, speeds=SPEEDS)
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))

    def seconds(algorithm):
      return pr.ledger.account(algorithm, shapes, N, 8, network).seconds[-1]

    self.assertAlmostEqual(seconds(pr.ad_psgd(SGD, speeds=SPEEDS)), 2.0)
    # In step, all wait for the slowest in the end.
    self.assertAlmostEqual(seconds(d_psgd_matching()), 8.0)

  @parameterized.parameters(0, 1.5, None, True)
  def test_speeds_are_positive_integers(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'speeds must be an integer >= 1, got {bad}'
    ):
      pr.ad_psgd(SGD, speeds=[1, bad])

  @parameterized.parameters(
    ({'speeds': [1, 2]}, 'speeds must have one number .* got 2'),
    ({'speeds': [1] * N, 'mixing': pr.graphs.ring()}, 'averages pairs'),
  )
  def test_fits_the_replicas(self, keywords, message):
    algorithm = pr.ad_psgd(SGD, **keywords)
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )

  def test_there_are_speeds(self):
    with self.assertRaisesRegex(ValueError, 'one number per replica, got none'):
      pr.ad_psgd(SGD, speeds=[])


class SparqTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('top_k', TOP_K),
    ('signs', pr.codecs.signs()),
    ('uncompressed', pr.codecs.uncompressed()),
  )
  def test_without_a_threshold_is_choco_with_local_steps(self, compressor):
    gossip = pr.stages.gossip_differences(
      pr.graphs.ring(),
      compressor,
      consensus_step_size=SPARQ['consensus_step_size'],
    )
    want = pr.k_avg(SGD, period=SPARQ['period'], average=gossip)
    got = run_sparq(0.0, compressor)
    assert_close(got.x, run_problem(want).x)
    sent = got.mesh.gather(got.state.registers['sparq_sgd.sent'])
    np.testing.assert_array_equal(sent, T // SPARQ['period'])

  def test_the_threshold_matters(self):
    apart = run_sparq(300.0, TOP_K).x - run_sparq(0.0, TOP_K).x
    self.assertGreater(np.abs(apart).max(), 1e-3)

  @parameterized.named_parameters(
    ('top_k', TOP_K),
    ('signs', pr.codecs.signs()),
    ('stochastic_levels', pr.codecs.stochastic_levels(4)),
    ('ternary', pr.codecs.ternary()),
    ('random_k', pr.codecs.random_k(FRACTION)),
  )
  def test_nobody_sends_beyond_all_thresholds(self, compressor):
    # Because the coded value is then 0, and so is the decoded one.
    got = run_sparq(1e30, compressor)
    assert_close(got.x, run_of(step).x)
    sent = got.mesh.gather(got.state.registers['sparq_sgd.sent'])
    np.testing.assert_array_equal(sent, 0)

  def test_counts_who_sent(self):
    _, sent = sparq_oracle(
      PROBLEM, learning_rate=LEARNING_RATE, momentum=MOMENTUM
    )
    a_round = sent.sum(axis=1)[SPARQ['period'] - 1 :: SPARQ['period']]
    self.assertEqual(a_round.max(), N)
    self.assertLess(a_round.min(), N / 2)
    run = run_problem(sparq(lambda step: sparq_threshold(step + 1)))
    counted = run.mesh.gather(run.state.registers['sparq_sgd.sent'])
    np.testing.assert_array_equal(counted, sent.sum(axis=0))

  def test_costs_what_all_would_send(self):
    shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((100,), np.float32))
    gossip = pr.stages.gossip_differences(
      pr.graphs.ring(), pr.codecs.top_k(FRACTION), consensus_step_size=0.4
    )
    choco = pr.k_avg(SGD, period=3, average=gossip)
    found, want = (
      pr.ledger.account(algorithm, shapes, N, T)
      for algorithm in (sparq(1e30), choco)
    )
    np.testing.assert_array_equal(found.rounds, want.rounds)
    np.testing.assert_array_equal(found.bytes_sent, want.bytes_sent)

  @parameterized.parameters(
    ({'threshold': -1.0}, 'threshold must be a schedule, or >= 0'),
    ({'learning_rate': 0.0}, 'learning_rate must be a schedule or > 0'),
    ({'consensus_step_size': 1.5}, r'must be in \(0, 1\], got 1.5'),
    ({'compressor': 3}, 'got 3'),
    ({'period': 0}, 'period must be an integer >= 1, got 0'),
  )
  def test_arguments(self, bad, message):
    good = {
      'learning_rate': 0.1,
      'threshold': 1.0,
      'compressor': pr.codecs.signs(),
      **SPARQ,
    }
    with self.assertRaisesRegex(ValueError, message):
      pr.sparq_sgd(SGD, **{**good, **bad})

  def test_w_is_constant(self):
    algorithm = pr.sparq_sgd(
      SGD,
      learning_rate=0.1,
      threshold=1.0,
      compressor=pr.codecs.signs(),
      mixing=pr.graphs.random_matching(),
      **SPARQ,
    )
    with self.assertRaisesRegex(ValueError, 'one W for all rounds, got 7'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(2)
      )


def noise_loss(params, model_state, noise, key):
  del key
  return params @ noise, (model_state, {'x': params})


class ConsensusVarianceTest(parameterized.TestCase):
  """PAPERS 5: unit noise and no gradient, n = 16, once it is stationary.

  Order A: (1/n) sum 1 / (1 - l^2) over the eigenvalues l != 1 of W; order C the
  same of l^2 / (1 - l^2); with E[W'W] for l^2 where W is drawn.
  """

  SIZE = 16
  DIM = 500
  EXPECTED = (
    ('ring', pr.graphs.ring, 2.410, 1.472),
    ('random_matching', pr.graphs.random_matching, 1.758, 0.820),
    ('full', pr.mixing.mean, 0.9375, 0.0),
  )

  @classmethod
  @functools.cache
  def unit_noise(cls):
    """[steps, N, dim] of NumPy, which draws ten times as fast here."""
    size = (1600, cls.SIZE, cls.DIM)
    return np.random.default_rng(0).standard_normal(size, np.float32)

  def variance(self, algorithm):
    """(1/n) sum_i |x_i - xbar|^2 / dim, averaged over a run."""
    mesh = pr.engine.ReplicaMesh(self.SIZE, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(self.DIM, np.float32)
    )
    train_steps = pr.engine.make_resident_train_steps(
      mesh,
      algorithm,
      noise_loss,
      lambda noise, step, replica, key: noise[step, replica],
    )
    noise = self.unit_noise()
    _, metrics = train_steps(state, mesh.replicate(noise), len(noise))
    # After 100 steps; the ring needs ten.
    x = np.concatenate(metrics['x'], axis=1)[105::5]
    distances = [reference.consensus_distance(y) for y in x.astype(np.float64)]
    return np.mean(distances) / self.DIM

  @parameterized.named_parameters(*EXPECTED)
  def test_order_a(self, make, order_a, order_c):
    del order_c
    got = self.variance(pr.d_psgd(optax.sgd(1.0), mixing=make()))
    # 300 samples, about 50 of them independent: five deviations of a run.
    np.testing.assert_allclose(got, order_a, rtol=0.03)

  @parameterized.named_parameters(*EXPECTED)
  def test_order_c(self, make, order_a, order_c):
    del order_a
    got = self.variance(pr.diffusion(optax.sgd(1.0), mixing=make()))
    np.testing.assert_allclose(got, order_c, rtol=0.03, atol=1e-9)

  @parameterized.named_parameters(*EXPECTED)
  def test_is_of_the_matrices(self, make, order_a, order_c):
    matrices = make().matrices(self.SIZE)
    squares = np.linalg.eigvalsh(
      (matrices.swapaxes(1, 2) @ matrices).mean(axis=0)
    )[:-1]
    self.assertAlmostEqual(
      (1 / (1 - squares)).sum() / self.SIZE, order_a, places=3
    )
    self.assertAlmostEqual(
      (squares / (1 - squares)).sum() / self.SIZE, order_c, places=3
    )


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(0, 1.5, None, True)
  def test_period(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'period must be an integer >= 1, got {bad}'
    ):
      pr.diffusion(SGD, period=bad)

  @parameterized.parameters(pr.d_psgd, pr.diffusion, pr.sgp)
  def test_mixing_is_one(self, make):
    with self.assertRaisesRegex(ValueError, 'expected a mixing such as'):
      make(SGD, mixing=J)

  @parameterized.parameters(
    pr.d_psgd,
    pr.diffusion,
    pr.sgp,
    lambda tx: pr.ad_psgd(tx, speeds=[1, 1]),
  )
  def test_optimizer_is_optax(self, make):
    with self.assertRaisesRegex(ValueError, 'optax transformation.*got 0.1'):
      make(0.1)


if __name__ == '__main__':
  absltest.main()
