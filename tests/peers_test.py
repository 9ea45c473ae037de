"""Tests of `running/process/peers.py`, with a store in place of JAX's."""

import json
import signal
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import absltest

from experiments.running.process import aborts, exit_codes, peers, signals
from prsgd_jax.engine import processes

HEARTBEAT = 0.4
ABORTS = """
import ctypes, os
from experiments.running.process import aborts
aborts.before(lambda: os._exit({code}) if {code} else print('own', flush=True))
ctypes.CDLL(None).abort()
"""


class Store:
  """The functions of JAX's store that are used."""

  def __init__(self):
    self.values = {}
    self.gone = False

  def key_value_set(self, key, value, allow_overwrite=False):
    if self.gone or (key in self.values and not allow_overwrite):
      raise RuntimeError(key)
    self.values[key] = value

  def key_value_dir_get(self, prefix):
    return [kv for kv in list(self.values.items()) if kv[0].startswith(prefix)]


class PeersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.store = Store()
    self.said = {}
    for name, value in (
      ('store', self.store),
      ('coordinator_address', 'localhost:1'),
    ):
      patch = mock.patch.object(processes, name, return_value=value)
      self.enterContext(patch)
    self.enterContext(mock.patch.object(peers, '_INTERVAL', 0.02))
    self.enterContext(mock.patch.object(peers, '_GRACE', 0.1))

  def crew(self, index, size=2):
    """A process that notes how it would end; nothing runs yet."""
    with (
      mock.patch.object(processes, 'index', return_value=index),
      mock.patch.object(processes, 'count', return_value=size),
    ):
      crew = peers._Crew(HEARTBEAT)
    ended = threading.Event()

    def end(code, why):
      self.said.setdefault(index, (code, why))
      crew.ended.set()
      ended.set()

    crew.end = end
    crew.over = ended
    self.addCleanup(crew.ended.set)
    return crew

  def start(self, *crews):
    for crew in crews:
      for target in (crew.talk, crew.judge):
        threading.Thread(target=target, daemon=True).start()

  def request(self, crew):
    with mock.patch.object(peers, '_crew', crew):
      return peers.requested()

  def test_all_stop_at_one_call_that_none_has_passed(self):
    crews = [self.crew(i, 3) for i in range(3)]
    for crew, calls in zip(crews, (5, 7, 4), strict=True):
      crew.calls = calls
    # A signal of all processes; the first one to write it counts.
    with mock.patch.object(signals, 'requested', return_value=signal.SIGTERM):
      found = [crew.exchange() for crew in crews][-1]
    self.assertEqual(found['stop'], str(int(signal.SIGTERM)))
    threads = [
      threading.Thread(target=crew.agree_to_stop, args=(15,)) for crew in crews
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEqual([crew.stop for crew in crews], [(8, 15)] * 3)
    answers = [[self.request(c) for _ in range(8 - c.calls)] for c in crews]
    self.assertEqual(answers, [[None, None, 15], [15], [None, None, None, 15]])

  def test_silent_process_is_lost_with_its_phase_and_step(self):
    crew = self.crew(0)
    sign = json.dumps([1, 'save', 40, False])
    self.store.key_value_set('prsgd_jax/peers/sign/1', sign)
    self.start(crew)
    self.assertTrue(crew.over.wait(60))
    code, why = self.said[0]
    self.assertEqual(code, exit_codes.LOST)
    self.assertRegex(why, '^process 1 was lost: .* in phase save at step 40')

  def test_processes_that_write_signs_are_not_lost(self):
    crews = self.crew(0), self.crew(1)
    self.start(*crews)
    self.assertFalse(crews[0].over.wait(2 * HEARTBEAT))
    self.assertEqual(self.said, {})

  def test_store_that_fails_is_the_loss_of_process_0(self):
    crew = self.crew(1)
    self.store.gone = True
    self.start(crew)
    self.assertTrue(crew.over.wait(60))
    self.assertRegex(self.said[1][1], '^process 0 was lost')

  def test_process_that_ended_with_an_error_gives_its_code(self):
    crew, other = self.crew(0), self.crew(1)
    with mock.patch.object(peers, '_crew', other):
      peers.leave(exit_codes.ERROR)
    self.start(crew)
    self.assertTrue(crew.over.wait(60))
    self.assertEqual(self.said[0][0], exit_codes.ERROR)
    self.assertRegex(self.said[0][1], '^process 1 ended with exit code 1 in ')

  def test_process_that_is_done_is_not_missed(self):
    crew, other = self.crew(0), self.crew(1)
    with mock.patch.object(peers, '_crew', other):
      peers.leave(exit_codes.DONE)
    self.start(crew)
    self.assertFalse(crew.over.wait(2 * HEARTBEAT))

  def test_error_of_all_processes_is_not_a_loss(self):
    crews = self.crew(0), self.crew(1)
    self.start(*crews)
    crews[1].failed = True
    with mock.patch.object(peers, '_crew', crews[0]):
      peers.await_verdict(ValueError('of every process'))
    self.assertEqual(self.said, {})

  def test_one_process_asks_its_own_signals(self):
    with mock.patch.object(signals, 'requested', return_value=10):
      self.assertEqual(peers.requested(), 10)
    peers.leave(1)  # nothing


class AbortsTest(absltest.TestCase):
  def ended(self, code):
    program = ABORTS.format(code=code)
    return subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True
    )

  def test_abort_may_end_in_another_code(self):
    self.assertEqual(self.ended(exit_codes.LOST).returncode, exit_codes.LOST)

  def test_abort_without_an_explanation_aborts(self):
    done = self.ended(0)
    self.assertEqual(done.returncode, -signal.SIGABRT)
    self.assertEqual(done.stdout, 'own\n')

  def test_address_without_a_listener_is_not_reachable(self):
    self.assertFalse(aborts.is_reachable('localhost:1'))
    self.assertFalse(aborts.is_reachable('nowhere'))


if __name__ == '__main__':
  absltest.main()
