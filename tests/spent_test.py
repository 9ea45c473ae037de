"""What is spent so far, asked of a trainer again and again."""

from unittest import mock

from absl.testing import absltest
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine.spent import make_spent
from prsgd_jax.engine.train_state import replica_shapes
from tests import harness

N = 4
SPAN = 64


class SpentTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.asked = 0
    self.plain = pr.chain(
      pr.where(pr.stages.first_steps((1, 2, 3, 3)), pr.step(optax.sgd(0.1))),
      pr.at(pr.schedules.every(3), pr.sync(pr.graphs.random_matching())),
    )
    self.state = harness.state_types(
      pr.engine.ReplicaMesh(N, 1), self.plain, np.zeros(3, np.float32), ()
    )

  def cost(self, shapes, num_replicas, steps):
    self.asked += len(steps)
    return self.plain.cost(shapes, num_replicas, steps)

  def spent(self):
    return make_spent(self.plain._replace(cost=self.cost), N)

  def of_steps(self, step, network=pr.ledger.NETWORK):
    meter = pr.ledger.meter(
      self.plain, replica_shapes(self.state), N, step, network
    )
    return meter.spent(meter.advance(meter.init(), step))

  @mock.patch.object(pr.ledger.counting, 'SPAN', SPAN)
  def test_continues_where_it_was(self):
    spent = self.spent()
    network = pr.ledger.Network(jitter=0.3)
    for step in range(10 * SPAN, 11 * SPAN, SPAN // 4):
      got = spent(self.state, step, network)
      self.assertEqual(got, self.of_steps(step, network))
    once = 11 * SPAN
    # At each call the first span, for the costs, and the current one.
    self.assertLessEqual(self.asked, once + 4 * 2 * SPAN)

  def test_of_several_runs_and_networks(self):
    spent = self.spent()
    slow = pr.ledger.Network(jitter=0.3)
    links = dict(slow.links)
    asked = [
      (9, slow),
      (2, slow),
      (9, pr.ledger.NETWORK),
      (14, slow),
      (0, slow),
    ]
    for step, network in asked:
      got = spent(self.state, step, network._replace(links=links))
      self.assertEqual(got, self.of_steps(step, network))
    links['neighbor'] = links['global'] = pr.ledger.Link(1.0, 1e6)
    changed = slow._replace(links=links)
    self.assertEqual(spent(self.state, 15, changed), self.of_steps(15, changed))


if __name__ == '__main__':
  absltest.main()
