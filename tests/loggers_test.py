"""Tests of the loggers of a run, `loggers.py`, and its instances."""

import contextlib
import io
import json
import math
import os
import pathlib
import struct
import sys
import tempfile
import threading
from unittest import mock

from absl.testing import absltest, parameterized
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from experiments.running.logs import console, loggers, logs
from experiments.running.logs import tensorboard_events as tensorboard
from experiments.running.records import records, writing
from tests import failing_disk

FLAGS = {'period': 4, 'learning_rate': 0.1, 'augment': False, 'when': None,
         'learning_rate_drops': [10, 20], 'codec': 'a|b'}  # fmt: skip


def record(step, **more):
  return {
    'step': step, 'epoch': step / 10, 'loss': 1 / step, 'accuracy': 0.5,
    'learning_rate': 0.1, 'rounds': step, 'bytes_sent': 2048.0 * step,
    'bytes_by_tier': {'global': 1024.0 * step, 'group': 1024.0 * step},
    'modeled_seconds': 0.5, **more,
  }  # fmt: skip


def events(directory):
  """All events, file by file; each check sum is looked at."""
  found = []
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      body, rest = data[12 : 12 + length], data[12 + length :]
      for part, its_sum in ((data[:8], data[8:12]), (body, rest[:4])):
        (wanted,) = struct.unpack('<I', its_sum)
        assert record_writer.masked_crc32c(part) == wanted, path
      found.append(event_pb2.Event.FromString(body))
      data = rest[4:]
  return found


def shown(directory):
  """tag -> (step, value) points, as TensorBoard shows them."""
  points = []
  for event in events(directory):
    if event.HasField('session_log'):  # a restart: later ones are dropped
      points = [p for p in points if p[1] < event.step]
    for value in event.summary.value:
      points.append((value.tag, event.step, value.simple_value))
  found = {}
  for tag, step, value in points:
    found.setdefault(tag, []).append((step, value))
  return found


class LoggersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.err = io.StringIO()
    self.enterContext(contextlib.redirect_stderr(self.err))

  def run_of(self, start=0, num_steps=40):
    return loggers.Run(self.root, 'pr_sgd period=4', FLAGS, start, num_steps)

  def log(self, steps, more=(), start=0, progress=False):
    log = logs.open_log(self.run_of(start), more, progress=progress)
    for step in steps:
      log.advance(10)
      log.write(record(step))
    log.close()

  def steps(self):
    return [r['step'] for r in records.read_records(self.root)]


class RecordsTest(LoggersTest):
  def test_records_are_json_with_the_time(self):
    log = logs.open_log(self.run_of(), progress=False)
    log.write(record(10, loss=math.nan))
    log.write(record(20))
    log.close()
    log.close()  # the second time it does nothing
    lines = (self.root / records.METRICS).read_text().splitlines()
    self.assertNotIn('NaN', lines[0])
    self.assertIsNone(json.loads(lines[0])['loss'])
    first, second = records.read_records(self.root)
    self.assertTrue(math.isnan(first['loss']))
    self.assertLessEqual(first['seconds'], second['seconds'])
    self.assertEqual(second, {**record(20), 'seconds': second['seconds']})

  def test_resumed_run_drops_what_it_makes_again(self):
    self.log([10, 20, 30])
    with open(self.root / records.METRICS, 'a') as file:
      file.write('{"step": 40, "lo')  # cut off
    self.log([30, 40], start=20)
    self.assertEqual(self.steps(), [10, 20, 30, 40])

  @parameterized.parameters('open', 'fsync', 'replace')
  def test_records_that_cannot_be_begun_end_the_run(self, call):
    with (
      failing_disk.refuse(call, records.METRICS),
      self.assertRaisesRegex(writing.WriteError, 'metrics.jsonl cannot be wr'),
    ):
      self.log([10])

  def test_full_disk_ends_the_run_and_the_records_are_whole(self):
    log = logs.open_log(self.run_of(), progress=False)
    log.write(record(10))
    size = (self.root / records.METRICS).stat().st_size
    with (
      failing_disk.limit(size + 20),  # a part of the line fits
      self.assertRaisesRegex(writing.WriteError, 'metrics.jsonl .*too large'),
    ):
      log.write(record(20))
    log.close()
    self.assertEqual(self.steps(), [10])

  def test_no_thread_is_left(self):
    before = threading.active_count()
    self.log([10, 20])
    self.assertEqual(threading.active_count(), before)


class GuardTest(LoggersTest):
  def broken(self, at):
    calls = []

    def fail_at(name):
      calls.append(name)
      if name == at:
        raise RuntimeError(f'no {name}')

    def factory(run):
      del run
      fail_at('open')
      return loggers.Logger(
        lambda record: fail_at('write'),
        lambda: fail_at('close'),
        lambda num_steps: fail_at('advance'),
      )

    return factory, calls

  @parameterized.parameters(
    ('open', ['open']),
    ('advance', ['open', 'advance']),
    ('write', ['open', 'advance', 'write']),
    ('close', ['open', *['advance', 'write'] * 3, 'close']),
    ('never', ['open', *['advance', 'write'] * 3, 'close']),
  )
  def test_logger_that_raises_is_dropped_with_one_warning(self, at, called):
    factory, calls = self.broken(at)
    self.log([10, 20, 30], [factory])
    self.assertEqual(calls, called)
    self.assertEqual(self.steps(), [10, 20, 30])
    warnings = self.err.getvalue()
    self.assertEqual(warnings.count('\n'), at != 'never')
    if at != 'never':
      self.assertRegex(warnings, f'dropped, the run continues .*no {at}')

  def test_what_is_no_logger_is_dropped(self):
    self.log([10], [lambda run: 3])
    self.assertEqual(self.steps(), [10])
    self.assertIn('expected a loggers.Logger, got 3', self.err.getvalue())

  def test_logger_that_changes_its_record_changes_no_other(self):
    seen = []
    spoil = loggers.Logger(lambda record: record.clear())
    keep = loggers.Logger(seen.append)
    self.log([10], [lambda run: spoil, lambda run: keep])
    self.assertEqual(seen[0]['step'], 10)
    self.assertEqual(self.steps(), [10])

  @parameterized.parameters('open', 'mkdir', 'limit')
  def test_tensorboard_that_fails_is_dropped(self, kind):
    if kind == 'limit':
      self.log([])
      (self.root / 'tensorboard').rename(self.root / 'earlier')
      log = logs.open_log(self.run_of(), progress=False)
      for path in (self.root / 'tensorboard').iterdir():
        os.truncate(path, 100_000)  # so that the limit is only too low for it
      with failing_disk.limit(50_000):
        log.write(record(10))
        log.write(record(20))
    else:
      with failing_disk.refuse(kind, 'tensorboard'):
        log = logs.open_log(self.run_of(), progress=False)
      log.write(record(10))
      log.write(record(20))
    log.close()
    self.assertEqual(self.steps(), [10, 20])
    self.assertRegex(
      self.err.getvalue(),
      r'^[^\n]*: warning: TensorBoard failed and is dropped, the run continues '
      r'\(WriteError: \S*tensorboard\S* cannot be written \([^\n]*\n$',
    )


class TensorboardTest(LoggersTest):
  def test_tags_are_in_groups_and_have_the_values(self):
    log = tensorboard.tensorboard(self.run_of())
    log.write(record(10, test_accuracy=0.75, consensus_distance=2.0))
    log.close()
    found = shown(self.root / 'tensorboard')
    scalars = {t: v for t, v in found.items() if t[:5] != '_hpar'}
    del scalars['flags/text_summary']
    self.assertEqual(
      {tag: points[0][1] for tag, points in scalars.items()},
      {
        'train/epoch': 1.0, 'train/loss': mock.ANY, 'train/accuracy': 0.5,
        'train/learning_rate': mock.ANY, 'test/accuracy': 0.75,
        'comm/rounds': 10, 'comm/bytes_sent': 20480.0,
        'comm/bytes_sent/global': 10240.0, 'comm/bytes_sent/group': 10240.0,
        'comm/modeled_seconds': 0.5, 'comm/consensus_distance': 2.0,
      },
    )  # fmt: skip
    self.assertAlmostEqual(found['train/loss'][0][1], 0.1)

  def test_flags_are_hyperparameters_and_text(self):
    self.log([10])
    summaries = [
      value
      for event in events(self.root / 'tensorboard')
      for value in event.summary.value
    ]
    by_tag = {value.tag: value for value in summaries}
    (text,) = by_tag['flags/text_summary'].tensor.string_val
    self.assertIn(b'\n    --period=4\n', text)
    self.assertIn(b'\n    --codec=a|b\n', text)
    self.assertNotIn(b'when', text)
    start = by_tag['_hparams_/session_start_info'].metadata.plugin_data.content
    self.assertIn(b'learning_rate', start)

  def test_resumed_run_shows_no_point_twice(self):
    self.log([10, 20, 30])
    self.log([30, 40], start=20)
    losses = shown(self.root / 'tensorboard')['train/loss']
    self.assertEqual([step for step, _ in losses], [10, 20, 30, 40])
    self.log([10, 20])  # no checkpoint was left: from the start
    found = shown(self.root / 'tensorboard')
    self.assertEqual([step for step, _ in found['train/loss']], [10, 20])
    self.assertLen(found['flags/text_summary'], 1)


class ConsoleTest(LoggersTest):
  def test_lines_where_there_is_no_terminal(self):
    log = logs.open_log(self.run_of())
    log.write(record(10))
    with mock.patch.object(console.time, 'monotonic', return_value=1e9):
      log.write(record(20, test_loss=0.5, test_accuracy=0.9))
    log.close()
    first, second = self.err.getvalue().splitlines()
    self.assertEqual(
      first,
      'pr_sgd period=4: step 10/40, epoch 1.00, loss 0.1000, 20.0 KiB sent',
    )
    self.assertRegex(
      second,
      'step 20/40, epoch 2.00, loss 0.0500, test loss 0.5000, test accuracy '
      r'90.00%, [\d.e-]+ steps/s, 40.0 KiB sent$',
    )
    self.assertNotIn('\r', self.err.getvalue())

  def test_bar_on_a_terminal(self):
    with mock.patch.object(self.err, 'isatty', return_value=True):
      self.log([10, 20, 30, 40], progress=True)
    self.assertRegex(self.err.getvalue(), r'\rpr_sgd period=4: .*40/40 .*loss')
    self.assertEndsWith(self.err.getvalue(), '\n')

  def test_error_is_below_the_bar(self):
    factory = mock.Mock(side_effect=RuntimeError('no network'))
    with mock.patch.object(self.err, 'isatty', return_value=True):
      log = logs.open_log(self.run_of(), [factory])
      log.advance(10)
      log.close()
      loggers.messages.warn('error: full')
    last = self.err.getvalue().split('\n')[-2]
    self.assertNotIn('\r', last)
    self.assertEndsWith(last, ': error: full')

  def test_nothing_without_progress(self):
    self.log([10, 20], progress=False)
    self.assertEqual(self.err.getvalue(), '')


# An example of the documentation.
WANDB = """
import wandb

from experiments.running.logs import loggers


def weights_and_biases(run):
  session = wandb.init(
    project='prsgd_jax', name=run.label, config=run.flags, dir=run.workdir,
    id=run.workdir.name, resume='allow',
  )
  return loggers.Logger(
    write=lambda record: session.log(record, step=record['step']),
    close=session.finish,
  )
"""


class LoadTest(LoggersTest):
  def test_example_of_weights_and_biases(self):
    here = self.root / 'own'
    here.mkdir()
    (here / 'my_loggers.py').write_text(WANDB)
    self.enterContext(contextlib.chdir(here))
    self.enterContext(mock.patch.object(sys, 'path', sys.path[:]))
    wandb = mock.Mock()
    sys.modules['wandb'] = wandb
    self.addCleanup(sys.modules.pop, 'wandb')
    more = loggers.load(['my_loggers:weights_and_biases'])
    self.addCleanup(sys.modules.pop, 'my_loggers')
    self.log([10, 20], more)
    init = wandb.init.call_args.kwargs
    self.assertEqual((init['name'], init['config']), ('pr_sgd period=4', FLAGS))
    logged = wandb.init.return_value.log.call_args_list
    self.assertEqual([call.kwargs['step'] for call in logged], [10, 20])
    self.assertEqual(logged[1].args[0]['loss'], 0.05)
    wandb.init.return_value.finish.assert_called_once_with()
    self.assertEqual(self.err.getvalue(), '')

  @parameterized.parameters(
    ('nowhere', 'expected MODULE:NAME'),
    ('no_such_module:fn', 'no_such_module'),
    ('math:no_such_name', 'no_such_name'),
  )
  def test_wrong_name_is_said(self, name, pattern):
    with self.assertRaisesRegex(ValueError, f'--logger={name}.*{pattern}'):
      loggers.load([name])


if __name__ == '__main__':
  absltest.main()
