"""--faults: names with numbers, and what has no effect."""

from absl.testing import absltest, parameterized
import numpy as np

from experiments.running.flags import faults

STEPS, REPLICAS = np.arange(300)[:, None], np.arange(8)[None]


class FaultsTest(parameterized.TestCase):
  def test_a_list_of_faults(self):
    crash, late, slow, nan, params = faults.parse(
      'crash:3:100:200,late:7+slow:1:2.5:10,nan:5:200,nan_params:0:9:12'
    )
    table = crash.affects(STEPS, REPLICAS)
    self.assertEqual(table.sum(axis=0).tolist(), [0, 0, 0, 100, 0, 0, 0, 0])
    self.assertTrue(table[100:200, 3].all())
    self.assertTrue(crash.returns)
    self.assertTrue(late.affects(STEPS, 7).all())
    self.assertEqual((slow.factor, slow.affects(9, 1)), (2.5, False))
    self.assertEqual((nan.kind, nan.affects(STEPS, 5).sum()), ('nan_grads', 1))
    self.assertEqual(params.kind, 'nan_params')
    self.assertEqual(params.affects(STEPS, 0).sum(), 3)

  def test_random_faults_follow_the_seed(self):
    one, same, other = (
      faults.parse('random_delays:0.5', seed)[0].affects(STEPS, REPLICAS)
      for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    self.assertTrue((one != other).any())

  @parameterized.parameters(
    ('crush:3:5', 'unknown --faults=crush:3:5; use one of crash, late'),
    ('crash:3', "--faults=crash:3: missing a required argument: 'at'"),
    ('late:x', "--faults expects float numbers, got 'x'"),
    ('crash:3:5:5', 'until must be > at = 5, got 5'),
    ('nan:1.5:3', 'must be an integer >= 0, got 1.5'),
    ('crash:1:5,', 'unknown --faults='),
  )
  def test_refuses(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      faults.check({'faults': text})

  def test_rejoin_needs_a_crash_that_ends(self):
    for text in ('late:3', 'crash:3:5'):
      with self.assertRaisesRegex(ValueError, '--rejoin does nothing'):
        faults.check({'faults': text, 'rejoin': 'stale'})
    faults.check({'faults': 'crash:3:5:6', 'rejoin': 'stale'})


if __name__ == '__main__':
  absltest.main()
