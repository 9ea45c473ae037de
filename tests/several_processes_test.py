"""A streamed run of train.py in two processes, and the program of the guide.

The one test that starts real processes. They are shared by all checks, because
each start takes seconds.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest

from experiments import train
from tests import binaries

ROOT = pathlib.Path(__file__).parents[1]
RUN = (
  '--algorithm=pr_sgd', '--period=4', '--num_replicas=4', '--num_devices=2',
  '--batch_size=16', '--num_steps=12', '--log_every=4', '--eval_every=8',
  '--checkpoint_every=8',
)  # fmt: skip
# After train.py, its processes run the program of the guide.
WORKER = """
import sys
sys.path[0] = {root!r}
from experiments.running.process import signals
signals.watch()
import jax
from experiments import train
from experiments.running.flags import cli
try:
  cli.run(train.main)
except SystemExit as stop:
  assert not stop.code, stop.code
addresses = []
jax.distributed.initialize = lambda *given: addresses.append(given)
sys.argv = ['mine.py', *sys.argv[-3:]]
exec(compile({guide!r}, 'mine.py', 'exec'), {{}})
(address, *numbers), = addresses
assert sys.argv[1] == f'--coordinator_address={{address}}', address
assert numbers == [2, jax.process_index()], numbers
"""


def guide():
  """The program of the guide."""
  text = (ROOT / 'docs' / 'several_hosts.md').read_text()
  (program,) = re.findall(r'(?ms)^```\{code-block\} python\n(.*?)^```', text)
  return program


@functools.cache
def outcome():
  """The directory of the run, and how its processes ended."""
  root = tempfile.TemporaryDirectory()
  outcome.root = root  # removed when the session ends
  worker = pathlib.Path(root.name, 'worker.py')
  worker.write_text(WORKER.format(root=str(ROOT), guide=guide()))
  workdir = pathlib.Path(root.name, 'run')
  data_dir = binaries.digits_dir()
  done = subprocess.run(
    [sys.executable, str(ROOT / 'experiments' / 'launch.py'),
     '--num_processes=2', '--', str(worker), f'--data_dir={data_dir}',
     f'--workdir={workdir}', *RUN, '--stream'],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TFDS_DATA_DIR': data_dir},
    capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  return workdir, done


def records(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  times = {'seconds': None, 'data_wait': None}
  return [{**json.loads(line), **times} for line in lines]


class SeveralProcessesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir, self.done = outcome()
    self.assertEqual(self.done.returncode, 0, self.done.stderr)

  def test_records_are_those_of_one_process_with_resident_data(self):
    alone = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory()), 'run'
    )
    one = binaries.call(train, *RUN, f'--workdir={alone}', '--noprogress')
    self.assertEqual(one.code, 0, one.err)
    self.assertLen(records(alone), 3)
    self.assertEqual(records(self.workdir), records(alone))
    files = [
      {path.name for path in workdir.iterdir()}
      for workdir in (self.workdir, alone)
    ]
    self.assertEqual(*files)

  def test_process_0_alone_prints_and_writes(self):
    out, err = self.done.stdout.splitlines(), self.done.stderr.splitlines()
    self.assertEqual([x for x in out + err if not x.startswith('[0] ')], [])
    self.assertIn(
      '[0] pr_sgd period=4: 4 replicas on 2 cpu devices of 2 processes (2 on '
      f'each) by vmap, writing to {self.workdir}',
      out,
    )
    self.assertLen([x for x in err if re.search(r'step \d+/12', x)], 3)
    self.assertLen(list((self.workdir / 'tensorboard').iterdir()), 1)

  def test_program_of_the_guide_trains(self):
    last = self.done.stdout.splitlines()[-1]
    found = re.fullmatch(
      r'\[0\] 4 replicas on 2 cpu devices of 2 processes \(2 on each\) '
      r'(\d\.\d+) \(64, 10\)',
      last,
    )
    self.assertIsNotNone(found, self.done.stdout)
    self.assertLess(float(found[1]), 1.5)  # 2.3 at first


if __name__ == '__main__':
  absltest.main()
