"""DiLoCo and its relatives: special cases, and differences."""

import functools

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows import LEARNING_RATE, PLAIN, SGD, TABLE, N, T

PROBLEM = reference.make_problem(N, T)
RING = pr.sync(pr.graphs.ring())
MUON = optax.contrib.muon(LEARNING_RATE)
ADAMW = optax.adamw(LEARNING_RATE)
ADAM = optax.adam(LEARNING_RATE)


def falling(round):
  return 0.9 * 0.8**round


def des_loc(period, first, second):
  return pr.des_loc(
    PLAIN,
    period=period,
    first_moment_period=first,
    second_moment_period=second,
  )


ALGORITHMS = {
  **{
    name: TABLE[name].make
    for name in (
      'diloco',
      'diloco_top_k',
      'diloco_ring',
      'diloco_sgp',
      'diloco_groups',
    )
  },
  'diffusion_4': lambda: pr.diffusion(SGD, mixing=pr.graphs.ring(), period=4),
  'diloco_ring_plain': lambda: pr.diloco(
    SGD, period=4, outer=optax.sgd(1.0), average=RING
  ),
  'bmuf_ring_plain': lambda: pr.bmuf(
    SGD, period=4, block_momentum=0.0, average=RING
  ),
  'diloco_8': lambda: pr.diloco(SGD, period=8),
  'diloco_groups_plain': lambda: pr.diloco(
    pr.k_avg(SGD, period=2, average=pr.sync(pr.mixing.group_mean(4))),
    period=8,
    outer=optax.sgd(1.0),
  ),
  'hier_avg': lambda: pr.hier_avg(
    SGD, local_period=2, global_period=8, group_size=4
  ),
  'diloco_uncoded': lambda: pr.diloco(
    SGD,
    period=4,
    average=pr.stages.average_differences(pr.codecs.uncompressed()),
  ),
  'muloco_of_adamw': lambda: pr.muloco(ADAMW, period=4, outer_momentum=0.9),
  'diloco_of_adamw': lambda: pr.diloco(ADAMW, period=4),
  'muloco': lambda: pr.muloco(MUON, period=4),
  'diloco_of_muon': lambda: pr.diloco(MUON, period=4),
  'muloco_plain': lambda: pr.muloco(
    MUON, period=4, outer_learning_rate=1.0, outer_momentum=0.0
  ),
  'k_avg_of_muon': lambda: pr.k_avg(MUON, period=4),
  'muloco_1': lambda: pr.muloco(
    MUON, period=1, outer_learning_rate=1.0, outer_momentum=0.0
  ),
  'ssgd_of_muon': lambda: pr.ssgd(MUON),
  'muloco_schedule': lambda: pr.muloco(
    MUON, period=4, outer_learning_rate=falling
  ),
  'diloco_of_muon_schedule': lambda: pr.diloco(
    MUON, period=4, outer=optax.sgd(falling, 0.6, nesterov=True)
  ),
  'noloco_of_all': lambda: pr.noloco(SGD, period=4, mixing=pr.mixing.mean()),
  'diloco_heavy_ball': lambda: pr.diloco(
    SGD, period=4, outer=optax.sgd(0.7, 0.5)
  ),
  'noloco': lambda: pr.noloco(SGD, period=4),
  'noloco_plain': lambda: pr.noloco(
    SGD, period=4, outer_learning_rate=1.0, outer_momentum=0.0
  ),
  # The average is as deep in the chain as in `noloco`, for the same draws.
  'diffusion_over_pairs': lambda: pr.chain(
    pr.chain(),
    pr.step(SGD),
    pr.at(pr.schedules.every(4), pr.sync(pr.graphs.random_matching())),
  ),
  'des_loc_equal': lambda: des_loc(3, 3, 3),
  'pr_sgd_of_adam_averaged': lambda: pr.pr_sgd(
    ADAM, period=3, average=pr.sync(pr.mixing.mean(), ('params', 'opt_state'))
  ),
  'des_loc_kept': lambda: des_loc(
    3, pr.schedules.never(), pr.schedules.never()
  ),
  'pr_sgd_of_adam': lambda: pr.pr_sgd(ADAM, period=3),
  'des_loc_1': lambda: des_loc(1, 1, 1),
  'ssgd_of_adam': lambda: pr.ssgd(ADAM),
  'diloco_schedule': lambda: pr.diloco(SGD, period=pr.schedules.every(4)),
}


@functools.cache
def trajectory(name):
  return harness.run_problem(ALGORITHMS[name](), PROBLEM).x


class IdentitiesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('diloco_ring_plain', 'diffusion_4'),
    ('bmuf_ring_plain', 'diffusion_4'),
    ('diloco_groups_plain', 'hier_avg'),
    ('diloco_uncoded', 'diloco'),
    ('diloco_schedule', 'diloco'),
    ('muloco_of_adamw', 'diloco_of_adamw'),
    ('muloco_plain', 'k_avg_of_muon'),
    ('noloco_of_all', 'diloco_heavy_ball'),
    ('noloco_plain', 'diffusion_over_pairs'),
    ('des_loc_equal', 'pr_sgd_of_adam_averaged'),
    ('des_loc_kept', 'pr_sgd_of_adam'),
  )
  def test_special_case_collapses(self, special, general):
    assert_close(trajectory(special), trajectory(general))

  @parameterized.parameters(
    ('diloco_ring', 'diloco'),
    ('diloco_sgp', 'diloco'),
    ('diloco_groups', 'diloco_8'),
    ('diloco_top_k', 'diloco'),
    ('muloco', 'diloco_of_muon'),
    ('muloco_1', 'ssgd_of_muon'),
    ('muloco_schedule', 'diloco_of_muon_schedule'),
    ('noloco', 'diloco_heavy_ball'),
    ('des_loc_equal', 'des_loc_kept'),
    ('des_loc_1', 'ssgd_of_adam'),
  )
  def test_these_are_different_algorithms(self, one, other):
    self.assertGreater(np.abs(trajectory(one) - trajectory(other)).max(), 1e-3)

  def test_on_one_replica_without_momentum_it_is_lookahead(self):
    # SNOO is DiLoCo on one replica.
    alone = reference.make_problem(1, T)
    ours = pr.diloco(SGD, period=5, outer=optax.sgd(0.4))
    slow = pr.slowmo(
      SGD,
      learning_rate=LEARNING_RATE,
      period=5,
      slow_learning_rate=0.4,
      slow_momentum=0.0,
    )
    one, other = (harness.run_problem(a, alone, 1).x for a in (ours, slow))
    assert_close(one, other)

  def test_the_mean_of_noloco_follows_the_heavy_ball(self):
    x = harness.run_problem(pr.noloco(PLAIN, period=4), PROBLEM).x
    mean = x.mean(axis=1)
    before = np.zeros_like(mean[0])
    for t in range(4, T + 1, 4):
      moved = sum(
        -LEARNING_RATE * PROBLEM.gradient(i, x[s - 1, i], s) / N
        for s in range(t - 3, t + 1)
        for i in range(N)
      )
      before = 0.5 * before + 0.7 * moved
      assert_close(mean[t] - mean[t - 4], before)

  def test_muon_reads_the_clock_of_the_engine(self):
    muon = optax.contrib.muon(lambda step: 0.05 * 0.9**step)
    restarted = pr.muloco(
      muon,
      period=5,
      average=pr.chain(pr.sync(pr.mixing.mean()), pr.restart(muon)),
    )
    state = harness.run_problem(restarted, PROBLEM).state
    counts = [
      node.count
      for node in jax.tree.leaves(state.opt_state, is_leaf=_is_scheduled)
      if _is_scheduled(node)
    ]
    self.assertLen(counts, 2)  # of the matrices, and of the others
    self.assertTrue(all((np.asarray(c) == T).all() for c in counts))


def _is_scheduled(node):
  return isinstance(node, optax.ScaleByScheduleState)


class TrafficTest(parameterized.TestCase):
  """Floats of a round: the model has 12."""

  @parameterized.parameters(
    ('muloco', 6, 6 * 48, 2 * (N - 1) / N),
    ('noloco', 6, 6 * 48, 1),
    ('des_loc_equal', 24, 24 * 48, 2 * (N - 1) / N),
  )
  def test_sends_the_parameters(self, name, rounds, payload, messages):
    algorithm = ALGORITHMS[name]()
    params = {'b': np.zeros(4, np.float32), 'w': np.zeros(8, np.float32)}
    state = harness.state_types(pr.engine.ReplicaMesh(N), algorithm, params)
    spent = pr.ledger.account(algorithm, pr.engine.replica_shapes(state), N, T)
    self.assertEqual(spent.rounds[-1], rounds)
    self.assertAlmostEqual(spent.bytes_sent[-1], messages * payload)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda: pr.muloco(MUON, period=0), 'period must be an integer >= 1'),
    (lambda: pr.muloco(MUON, outer_momentum=1.0), 'outer_momentum must be in'),
    (lambda: pr.muloco(MUON, outer_learning_rate=0), 'a schedule or > 0'),
    (lambda: pr.noloco(SGD, period=4, outer_learning_rate=0), 'must be > 0'),
    (lambda: pr.noloco(SGD, period=4, outer_momentum=-1), 'outer_momentum'),
    (lambda: des_loc(2, 2, 0), 'period must be an integer >= 1, got 0'),
    (
      lambda: pr.des_loc(
        SGD, period=2, first_moment_period=2, second_moment_period=2, b2=1.0
      ),
      r'b2 must be in \[0, 1\), got 1.0',
    ),
  )
  def test_arguments_are_in_range(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
