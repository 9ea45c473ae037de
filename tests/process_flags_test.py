"""Tests of the flags by which the processes of a run find each other."""

import contextlib
import io
import os
import socket
import sys
import time
from unittest import mock

from absl import flags
from absl.testing import absltest, flagsaver, parameterized
import jax

from experiments import sweep
from experiments.running.flags import cli, process_flags
from experiments.running.process import messages, process_zero, signals
from prsgd_jax.engine import processes
from tests import binaries

FLAGS = flags.FLAGS
BY_HAND = {
  'coordinator_address': 'localhost:1', 'num_processes': 4, 'process_id': 0,
}  # fmt: skip


class JoinTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    FLAGS.mark_as_parsed()
    self.initialize = self.enterContext(
      mock.patch.object(jax.distributed, 'initialize')
    )

  def join(self, **given):
    with flagsaver.flagsaver(**given):
      process_flags.join(FLAGS)

  def refused(self, message, **given):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self.join(**given)
    self.assertNotIn('\n', str(caught.exception))
    self.initialize.assert_not_called()

  def test_without_flags_nothing_happens(self):
    before = time.monotonic()
    self.join()
    self.assertLess(time.monotonic() - before, 0.1)
    self.initialize.assert_not_called()

  @parameterized.parameters(*BY_HAND)
  def test_all_three_flags_are_required(self, name):
    self.refused(f'; add --{name}$', **{**BY_HAND, name: None})

  @parameterized.parameters(
    ({'process_id': 4}, '--process_id must be 0 to 3 for --num_processes=4'),
    ({'process_id': -1}, '--process_id must be 0 to 3 .* got -1'),
    ({'num_processes': 0}, '--num_processes must be >= 1, got 0'),
    ({'coordinator_address': 'here'}, 'must be HOST:PORT, .* got here'),
    ({'coordinator_address': 'h:0'}, 'must be HOST:PORT'),
    ({'coordinator_address': 'h:65536'}, 'must be HOST:PORT'),
    ({'distributed': 'auto'}, 'auto finds the processes by itself; leave out'),
    ({'join_seconds': 0}, '--join_seconds must be >= 1, got 0'),
    ({'heartbeat_seconds': 0}, '--heartbeat_seconds must be >= 1, got 0'),
    ({'local_device_ids': ['0', 'b']}, 'indices of devices, .* got 0,b'),
  )
  def test_a_wrong_value_is_one_line(self, given, message):
    self.refused(message, **{**BY_HAND, **given})

  def test_a_taken_port_is_one_line(self):
    with socket.socket() as taken:  # JAX ends by a segmentation fault
      taken.bind(('', 0))
      taken.listen()
      port = taken.getsockname()[1]
      self.refused(
        f'process 0 cannot listen on port {port} .* pass another port',
        **{**BY_HAND, 'coordinator_address': f'localhost:{port}'},
      )

  def test_process_0_that_is_not_there_is_one_line(self):
    with (
      socket.socket() as closed,
      mock.patch.object(process_flags, '_RETRY_SECONDS', 0.01),
      mock.patch.object(time, 'monotonic', iter(range(10**6)).__next__),
    ):
      closed.bind(('127.0.0.1', 0))  # and does not listen
      address = f'127.0.0.1:{closed.getsockname()[1]}'
      given = {
        'coordinator_address': address,
        'process_id': 1,
        'join_seconds': 5,
      }
      self.refused(
        f'process 0 was not reached at {address} within .*Connection refused',
        **{**BY_HAND, **given},
      )

  def test_jax_gets_what_the_flags_say(self):
    with socket.socket() as free:
      free.bind(('', 0))
      port = free.getsockname()[1]
    address = f'localhost:{port}'
    given = {**BY_HAND, 'coordinator_address': address}
    self.join(**given, local_device_ids=['2', '3'], heartbeat_seconds=7)
    self.initialize.assert_called_once_with(
      **given,
      local_device_ids=[2, 3],
      heartbeat_timeout_seconds=7,
      initialization_timeout=mock.ANY,
      cluster_detection_method='deactivate',
    )

  def test_jax_finds_the_cluster(self):
    self.join(distributed='auto')
    found = self.initialize.call_args.kwargs
    self.assertIsNone(found['cluster_detection_method'])
    self.join(distributed='slurm')
    found = self.initialize.call_args.kwargs
    self.assertEqual(found['cluster_detection_method'], 'slurm')
    self.assertNotIn('num_processes', found)

  def test_no_cluster_is_one_line(self):
    self.initialize.side_effect = ValueError('coordinator_address should be '
                                             'defined.')  # fmt: skip
    with self.assertRaisesRegex(ValueError, 'auto: no SLURM, .* was found; '):
      self.join(distributed='auto')

  def test_the_others_that_do_not_come_are_one_line(self):
    with (
      mock.patch.object(os, '_exit') as end,
      mock.patch.object(messages, 'end_line') as line,
      process_flags._one_line_after(time.monotonic(), seconds=7),
    ):
      for _ in range(500):
        if end.called:
          break
        time.sleep(0.01)  # as JAX, which ends by a stack trace
    end.assert_called_once_with(1)
    self.assertStartsWith(
      line.call_args.args[0], 'error: not all processes joined within 7 s; '
    )

  def test_given_flags_can_be_repeated(self):
    with flagsaver.as_parsed(
      num_processes='2', process_id='0', local_device_ids='0,1'
    ):
      self.assertEqual(
        process_flags.given(FLAGS),
        ['--num_processes=2', '--process_id=0', '--local_device_ids=0,1'],
      )
      launched = signals.launched_by(['launch.py'], ['train.py'])
      with mock.patch.dict(os.environ, launched):
        self.assertEmpty(process_flags.given(FLAGS))

  def test_sweep_refuses_them(self):
    outcome = binaries.call(
      sweep, '--workdir=x', '--run=ssgd', '--num_processes=2'
    )
    self.assertEqual(
      (outcome.code, outcome.err),
      (1, 'sweep.py: error: sweep.py starts each run as one process; leave out '
       '--num_processes\n'),
    )  # fmt: skip

  def test_processes_share_the_simulated_devices(self):
    with (
      mock.patch.object(processes, 'count', return_value=4),
      mock.patch.object(jax.config, 'update') as update,
    ):
      cli.make_fake_devices(8)
      update.assert_called_once_with('jax_num_cpu_devices', 2)
      with self.assertRaisesRegex(ValueError, 'multiple of the 4 .* got 6'):
        cli.make_fake_devices(6)


class MessagesTest(absltest.TestCase):
  def test_other_processes_print_what_is_their_own(self):
    err = io.StringIO()
    with (
      mock.patch.object(messages, '_where', 'process 2: '),
      mock.patch.object(sys, 'argv', ['train.py']),
      contextlib.redirect_stderr(err),
    ):
      messages.warn('the run starts again')  # which process 0 prints
      messages.warn('error: bad')
      messages.warn('warning: full')
    self.assertEqual(
      err.getvalue(),
      'train.py: process 2: error: bad\ntrain.py: process 2: warning: full\n',
    )


class ProcessZeroTest(absltest.TestCase):
  """One thread plays all processes: what process 0 shares is kept."""

  def setUp(self):
    super().setUp()
    self.shared = {}
    self.index = 0
    for name, stub in (
      ('count', lambda: 2),
      ('is_first', lambda: self.index == 0),
      ('agree', self.agree),
      ('collect', lambda name, value: [value, value]),
    ):
      self.enterContext(mock.patch.object(processes, name, stub))

  def agree(self, name, value):
    return self.shared.setdefault(name, value) if self.index else (
      self.shared.__setitem__(name, value) or value
    )  # fmt: skip

  def test_only_process_0_works_and_all_have_its_result(self):
    work = mock.Mock(return_value={'step': 4})
    for self.index in (0, 1):
      self.assertEqual(process_zero.decide('a', work), {'step': 4})
    work.assert_called_once_with()

  def test_an_error_ends_the_others(self):
    work = mock.Mock(side_effect=ValueError('bad'))
    with self.assertRaisesRegex(ValueError, 'bad'):
      process_zero.decide('a', work)
    self.index = 1
    with self.assertRaises(SystemExit) as caught:
      process_zero.decide('a', work)
    self.assertEqual(caught.exception.code, 1)

  def test_only_process_0_holds_a_lock(self):
    lock = mock.MagicMock()
    for self.index in (0, 1):
      with process_zero.held('a', lambda: lock):
        pass
    lock.__enter__.assert_called_once()
    lock.__exit__.assert_called_once()

  def test_unequal_settings_are_one_line_on_all(self):
    process_zero.check_equal({'period': 4, 'seed': 0})
    found = [{'period': 4}, {'period': 4}, {'period': 8}]
    with (
      mock.patch.object(processes, 'collect', return_value=found),
      self.assertRaisesRegex(
        ValueError, '^--period is 8 in process 2, and 4 in process 0; pass the '
      ),
    ):
      process_zero.check_equal(found[0])


if __name__ == '__main__':
  absltest.main()
