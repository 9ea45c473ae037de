"""Tests of `experiments/running/execution/saving.py`."""

from concurrent.futures import Future
import contextlib
import io
import pathlib
import tempfile
import types
from unittest import mock

from absl.testing import absltest, parameterized

from experiments.running.execution import saving
from experiments.running.process import signals
from prsgd_jax.engine import Retention
from prsgd_jax.engine.checkpoints import SaveError

FULL = SaveError('checkpoints/40 cannot be written (No space left on device)')


class SaverTest(parameterized.TestCase):
  """A saver whose trainer is ours, so that a save ends when we say so."""

  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (root / 'metrics.jsonl').touch()
    self.enterContext(mock.patch.object(saving, 'check_params'))
    self.started, self.notes = [], []
    trainer = types.SimpleNamespace(save_in_background=self.start)
    parts = types.SimpleNamespace(trainer=trainer, description={})
    self.saver = saving.Saver(parts, root, Retention(lowest=('test_loss',)))

  def start(self, directory, state, description, *, notes, keep):
    self.assertEqual(keep, Retention(lowest=('test_loss',)))
    self.started.append(Future())
    self.notes.append(notes)
    return self.started[-1]

  def save(self, step=40):
    self.saver.save(types.SimpleNamespace(step=step), {'sums': {}})

  def test_next_save_waits_for_the_one_before(self):
    self.save()
    timer = mock.Mock(side_effect=lambda: self.assertLen(self.started, 1))
    with mock.patch.object(
      self.started[0], 'result', side_effect=timer
    ) as result:
      self.save(80)
    result.assert_called_once()
    self.assertLen(self.started, 2)

  @parameterized.parameters('save', 'wait', 'poll', 'leave')
  def test_error_is_raised_at_the_next_call_and_once(self, how):
    self.save()
    self.saver.poll()  # not yet
    self.started[0].set_exception(FULL)
    with self.assertRaises(SaveError) as caught:
      if how == 'leave':
        with self.saver:
          pass
      else:
        {'save': self.save, 'wait': self.saver.wait, 'poll': self.saver.poll}[
          how
        ]()
    self.assertIs(caught.exception, FULL)
    self.saver.wait()
    self.assertLen(self.started, 1)

  def test_error_of_a_save_is_the_lesser_of_two(self):
    self.save()
    self.started[0].set_exception(FULL)
    err = io.StringIO()
    stopped = signals.Stopped('nothing was lost', 15)
    with (
      contextlib.redirect_stderr(err),
      self.assertRaises(signals.Stopped),
      self.saver,
    ):
      raise stopped
    self.assertRegex(err.getvalue(), 'warning: checkpoints/40 cannot be writ')

  @parameterized.parameters((RuntimeError, 0), (signals.Stopped, 1))
  def test_process_of_several_that_fails_alone_does_not_wait(self, kind, waits):
    self.save()
    error = kind('lost', 15)
    with (
      mock.patch.object(saving.processes, 'count', return_value=2),
      mock.patch.object(self.started[0], 'result') as result,
      self.assertRaises(kind),
      self.saver,
    ):
      raise error
    self.assertEqual(result.call_count, waits)

  def test_measures_are_those_of_the_record_of_the_step(self):
    found = {'loss': 0.5, 'test_loss': float('nan'), 'test_accuracy': 1}
    self.saver.measured(40, found)
    for step in (40, 41):
      self.save(step)
      self.started[-1].set_result(None)
    measures = {'loss': 0.5, 'test_accuracy': 1.0}
    self.assertEqual(
      self.notes,
      [{'sums': {}, 'measures': measures}, {'sums': {}, 'measures': {}}],
    )

  def test_measure_that_no_record_has_is_one_warning(self):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      for step in (40, 80):
        self.saver.measured(step, {'loss': 0.5, 'test_error': 0.1})
        self.save(step)
        self.started[-1].set_result(None)
    self.assertRegex(
      err.getvalue(), 'warning: --keep names test_loss, but the record of step '
      '40 has loss, test_error\n$',
    )  # fmt: skip
    self.assertEqual(err.getvalue().count('\n'), 1)


if __name__ == '__main__':
  absltest.main()
