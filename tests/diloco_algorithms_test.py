"""DiLoCo and its relatives: what each is a special case of, and is not."""

import functools

from absl.testing import absltest, parameterized
import numpy as np
import optax

import prsgd_jax as pr
from tests import harness, reference
from tests.algorithms_test import assert_close
from tests.rows import SGD, TABLE, N, T

PROBLEM = reference.make_problem(N, T)
RING = pr.sync(pr.ring())

ALGORITHMS = {
  **{
    name: TABLE[name].make
    for name in (
      'diloco',
      'diloco_feedback',
      'diloco_ring',
      'diloco_sgp',
      'diloco_groups',
    )
  },
  'diffusion_4': lambda: pr.diffusion(SGD, mixing=pr.ring(), period=4),
  'diloco_ring_plain': lambda: pr.diloco(
    SGD, period=4, outer=optax.sgd(1.0), average=RING
  ),
  'bmuf_ring_plain': lambda: pr.bmuf(
    SGD, period=4, block_momentum=0.0, average=RING
  ),
  'diloco_8': lambda: pr.diloco(SGD, period=8),
  'diloco_groups_plain': lambda: pr.diloco(
    pr.k_avg(SGD, period=2, average=pr.sync(pr.group_mean(4))),
    period=8,
    outer=optax.sgd(1.0),
  ),
  'hier_avg': lambda: pr.hier_avg(
    SGD, local_period=2, global_period=8, group_size=4
  ),
  'diloco_uncoded': lambda: pr.diloco(
    SGD, period=4, average=pr.average_differences(pr.uncompressed())
  ),
  'diloco_schedule': lambda: pr.diloco(SGD, period=pr.every(4)),
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
  )
  def test_special_case_collapses(self, special, general):
    assert_close(trajectory(special), trajectory(general))

  @parameterized.parameters(
    ('diloco_ring', 'diloco'),
    ('diloco_sgp', 'diloco'),
    ('diloco_groups', 'diloco_8'),
    ('diloco_feedback', 'diloco'),
  )
  def test_these_are_different_algorithms(self, one, other):
    self.assertGreater(np.abs(trajectory(one) - trajectory(other)).max(), 1e-3)


if __name__ == '__main__':
  absltest.main()
