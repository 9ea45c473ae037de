"""Two processes with two devices each, against one process with four.

`make hosts` runs every row of the table on more layouts.
"""

import concurrent.futures
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import jax

from tests import observed_rows, process_groups

LAYOUT = process_groups.Layout(2, 2)
LIMIT = 600.0  # seconds, because other tests share the machine
# A mean and groups, a shift, random pairs, push-sum over time-varying graphs,
# codes, a robust average, delays, and rounds that the data decide.
BY_PMAP = (
  'hier_avg', 'd_psgd_matching', 'sgp_one_peer', 'qsgd', 'edit', 'eager_diloco',
)  # fmt: skip
BY_SHARD_MAP = ('d_psgd_ring', 'dynamic')
ROWS = {
  **dict.fromkeys(BY_PMAP, process_groups.PMAP),
  **dict.fromkeys(BY_SHARD_MAP, process_groups.SHARD_MAP),
}
READ = ('d_psgd_ring', 'sgp_one_peer')  # an output that is the state, or not
SAVED = 'hier_avg'
WITHOUT_SUMS = ('d_psgd_ring', 'd_psgd_matching', 'sgp_one_peer', 'qsgd')
REFUSED = {
  'replicas': (
    'num_replicas must be a multiple of the 2 processes, got 7'
  ),
  'devices': (
    'num_devices must divide the 8 replicas and be a multiple of the 2 '
    'processes, got 1; use one of [2, 4, 8]'
  ),
  'indivisible': (
    'num_devices must divide the 6 replicas and be a multiple of the 2 '
    'processes, got 4; use one of [2, 6]'
  ),
  'too_many': (
    'num_devices must be at most the 4 cpu device(s) available, got 8; for '
    "fake CPU devices set jax.config.update('jax_num_cpu_devices', 4) first"
  ),
  'unequal': (
    'each process must have as many devices as the others, got (process: '
    'devices) {0: 2, 1: 1}'
  ),
  'others': (
    'devices must include some of process 0, got those of [1]; pass '
    'devices=jax.devices()'
  ),
  'state': (
    'run is of a trainer of 8 replicas on 4 cpu devices of 2 processes (2 on '
    'each), but the state is of one of 8 replicas on 2 cpu devices of 2 '
    'processes (4 on each); use the trainer that made it'
  ),
}  # fmt: skip


class TwoProcessesTest(parameterized.TestCase):
  """One trajectory, and one answer to each question."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = tempfile.TemporaryDirectory()
    cls.addClassCleanup(directory.cleanup)
    cls.directory = pathlib.Path(directory.name)
    with concurrent.futures.ThreadPoolExecutor() as pool:
      group = pool.submit(
        process_groups.run,
        LAYOUT,
        cls.directory,
        pmap=BY_PMAP,
        shard_map=BY_SHARD_MAP,
        seconds=LIMIT,
        options=['--refused', f'--read={",".join(READ)}', f'--saved={SAVED}'],
      )
      with jax.enable_x64(True):
        cls.whole = {row: cls.observe_here(row) for row in ROWS}
      group.result()

  @classmethod
  def observe_here(cls, row):
    return observed_rows.observe(
      row,
      directory=cls.directory / 'here' if row == SAVED else None,
      read=row in READ,
      lower=True,
      num_devices=4,
    )

  @parameterized.parameters(*ROWS.items())
  def test_equal_one_process(self, row, map_by):
    self.assertEqual(bool(self.whole[row]['exact']), row in WITHOUT_SUMS)
    self.assertEmpty(
      process_groups.against_one_process(
        LAYOUT, self.directory, row, map_by, self.whole
      )
    )

  @parameterized.parameters(*ROWS.items())
  def test_read_the_same_numbers(self, row, map_by):
    self.assertEmpty(process_groups.within(LAYOUT, self.directory, row, map_by))

  @parameterized.parameters(*REFUSED.items())
  def test_refuse(self, case, message):
    path = self.directory / 'refused.0.json'
    self.assertEqual(json.loads(path.read_text())[case], message)


if __name__ == '__main__':
  absltest.main()
