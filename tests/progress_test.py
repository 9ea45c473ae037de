"""Tests of `running/records/progress.py`, on directories without arrays."""

import contextlib
import io
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized
import numpy as np

from experiments.running.records import progress
from prsgd_jax.engine import checkpoint_files
from prsgd_jax.engine.checkpoints import CheckpointError

# steps, sums and number of records of each checkpoint; the first three right
# after records, the last one between two of them.
SAVED = ((0, {}, 0), (20, {}, 2), (40, {}, 4), (44, {'loss': 0.1 + 0.2}, 4))


class ProgressTest(absltest.TestCase):
  def test_means_are_of_the_active(self):
    found = progress.Progress()
    loss = np.array([[1.0, 3.0], [0.0, 5.0]])  # [steps, N]
    found.add({'loss': loss, 'active': np.array([[1, 1], [0, 1]])})
    self.assertFalse(found.is_recorded())
    self.assertEqual(found.pop(), {'loss': 3.0})
    self.assertTrue(found.is_recorded())
    self.assertEqual(found.notes(), {'sums': {}, 'num_records': 1})

  def test_a_metric_of_several_numbers_is_their_mean(self):
    found = progress.Progress()
    loss = np.array([[1.0, 3.0]])  # [steps, N]
    classes = np.array([[[0.5, 1.0, 0.0], [1.0, 1.0, 1.0]]])
    found.add({'loss': loss, 'accuracy': classes})
    self.assertEqual(found.pop(), {'loss': 2.0, 'accuracy': 0.75})

  def test_interrupted_means_are_the_same_bits(self):
    values = np.random.default_rng(0).normal(size=(30, 3, 8))
    values = values.astype(np.float32)
    whole, parts = progress.Progress(), progress.Progress()
    for value in values:
      whole.add({'loss': value})
      parts.add({'loss': value})
      notes = json.loads(json.dumps(parts.notes()))
      parts = progress.Progress(notes['sums'], notes['num_records'])
    self.assertEqual(whole.pop(), parts.pop())


class FindStartTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(root)

  def write(self, recorded, saved=SAVED, notes=True):
    numbers = dict.fromkeys(
      ('epoch', 'loss', 'rounds', 'bytes_sent', 'modeled_seconds', 'seconds'),
      0,
    )
    lines = [json.dumps({'step': s, **numbers}) + '\n' for s in recorded]
    (self.workdir / 'metrics.jsonl').write_text(''.join(lines))
    for step, sums, count in saved:
      path = self.workdir / 'checkpoints' / str(step)
      path.mkdir(parents=True)
      noted = {'sums': sums, 'num_records': count}
      record = {'description': {}, 'num_replicas': 1, 'leaves': {}}
      record |= {'notes': noted} if notes else {}
      checkpoint_files.write_record(path, record, {})

  def find(self):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      found = progress.find_start(self.workdir)
    return found, err.getvalue()

  def test_without_checkpoints_it_starts_anew(self):
    self.write([10], saved=())
    self.assertEqual(self.find(), (None, ''))

  @parameterized.parameters(
    ([10, 20, 30, 40], 44, {'loss': 0.1 + 0.2}, 4),
    ([10, 20, 30, 40, 44], 44, {}, 5),  # written after the signal
    ([10, 20, 30, 40, 50, 60], 44, {'loss': 0.1 + 0.2}, 4),
    ([10, 20, 30], 20, {}, 2),
    ([10, 20, 40, 50], 20, {}, 2),  # a hole in the middle
    ([10], 0, {}, 0),
    ([], 0, {}, 0),
  )
  def test_newest_that_the_records_reach(self, recorded, step, sums, count):
    self.write(recorded)
    (found, means), err = self.find()
    self.assertEqual(found, step)
    self.assertEqual(means.notes(), {'sums': sums, 'num_records': count})
    newer = [s for s, _, _ in SAVED if s > step]
    self.assertEqual(err.count('\n'), len(newer))
    for other in newer:
      self.assertIn(f'kept as {other}.unrecorded', err)
      kept = self.workdir / 'checkpoints' / f'{other}.unrecorded'
      checkpoint_files.read_record(kept)
    self.assertEqual(self.find()[1], '')  # said once

  def test_without_any_it_is_one_line_and_nothing_moves(self):
    self.write([10], saved=SAVED[1:])
    with self.assertRaisesRegex(
      CheckpointError, r'metrics.jsonl lacks records of steps before \S+/20; '
      'put it back, or start a new run with --init_from='
    ):  # fmt: skip
      self.find()
    left = {p.name for p in (self.workdir / 'checkpoints').iterdir()}
    self.assertEqual(left, {'20', '40', '44'})

  @parameterized.parameters(([10, 20, 30, 40], 40), ([10, 20, 30], 20))
  def test_checkpoints_of_an_earlier_version(self, recorded, step):
    self.write(recorded, saved=SAVED[1:3], notes=False)
    (found, means), _ = self.find()
    self.assertEqual(found, step)
    self.assertTrue(means.is_recorded())


if __name__ == '__main__':
  absltest.main()
