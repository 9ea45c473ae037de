"""Tests of `experiments/running/records/units.py`."""

import doctest
import math

from absl.testing import absltest, parameterized

from experiments.running.records import units


class UnitsTest(parameterized.TestCase):
  @parameterized.parameters(
    (math.nan, 'nan'), (math.inf, 'inf'), (0, '0 B'), (1536.0, '1.5 KiB'),
    (2.0**60, '1048576.0 TiB'),
  )  # fmt: skip
  def test_sizes(self, count, text):
    self.assertEqual(units.size(count), text)

  @parameterized.parameters(
    (math.nan, 'nan'), (0, '0 s'), (1e-5, '10.0 µs'), (0.0123, '12.3 ms'),
    (59.94, '59.9 s'), (90, '1.5 min'), (86400, '1.0 d'), (1e300, '1.16e+295 d')
  )  # fmt: skip
  def test_durations(self, seconds, text):
    self.assertEqual(units.duration(seconds), text)

  def test_examples(self):
    self.assertEqual(doctest.testmod(units).failed, 0)


if __name__ == '__main__':
  absltest.main()
