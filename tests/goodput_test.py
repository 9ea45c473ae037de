"""Tests of `running/records/goodput.py`, on a clock of the test."""

import contextlib
import io
import pathlib
import tempfile

from absl.testing import absltest

from experiments.running.execution.phases import EVALUATE, SAVE, TRAIN, Phases
from experiments.running.records import goodput


class GoodputTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.now = 1000.0

  def clock(self):
    return self.now

  def attempt(self, first_step, *parts):
    """Run (phase, step, seconds) one after the other, with a note at each."""
    phases = Phases(first_step, self.clock)
    life = goodput.open_life(self.root, first_step, self.clock)
    for name, step, seconds in parts:
      phases.enter(name, step)
      self.now += seconds
      phases.enter(name, step)
      life.note(step, phases.seconds())
    return life

  def test_whole_life_with_a_kill_and_a_wait(self):
    first = self.attempt(
      0, (TRAIN, 10, 8.0), (SAVE, 10, 1.0), (TRAIN, 20, 6.0)
    )  # kill -9: nothing is closed
    self.assertEqual(first.spent()['productive'], 14.0)
    self.now += 5.0
    second = self.attempt(10, (TRAIN, 20, 6.5), (EVALUATE, 20, 2.0))
    found = second.spent()
    self.assertEqual(
      {name: value for name, value in found.items() if value},
      {
        'productive': 14.5,
        'lost': 6.0,
        'waiting': 5.0,
        'save': 1.0,
        'evaluate': 2.0,
      },
    )
    self.assertEqual(sum(found.values()), self.now - 1000)
    self.assertEqual(goodput.goodput(found), 14.5 / 28.5)

  def test_steps_that_were_lost_stay_lost(self):
    self.attempt(0, (TRAIN, 10, 3.0), (TRAIN, 20, 4.0))
    self.attempt(10, (TRAIN, 30, 5.0))
    found = self.attempt(30, (TRAIN, 40, 6.0)).spent()
    self.assertEqual((found['productive'], found['lost']), (14.0, 4.0))

  def test_resume_before_the_start_of_an_attempt_loses_all_of_it(self):
    self.attempt(0, (TRAIN, 10, 3.0), (TRAIN, 20, 4.0))
    self.attempt(20, (TRAIN, 30, 5.0))
    found = self.attempt(10, (TRAIN, 40, 6.0)).spent()
    self.assertEqual((found['productive'], found['lost']), (9.0, 9.0))

  def test_half_a_line_is_omitted(self):
    self.attempt(0, (TRAIN, 10, 3.0))
    with open(self.root / goodput.NAME, 'a') as file:
      file.write('{"attempt": 0, "first_st')
    found = self.attempt(10, (TRAIN, 20, 2.0)).spent()
    self.assertEqual(found['productive'], 5.0)

  def test_damaged_file_is_kept_and_named(self):
    path = self.root / goodput.NAME
    path.write_text('zeros\n')
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      found = self.attempt(10, (TRAIN, 20, 2.0)).spent()
    self.assertRegex(err.getvalue(), 'warning: .* is damaged .*jsonl.damaged')
    self.assertEqual(found['productive'], 2.0)
    aside = path.with_name('attempts.jsonl.damaged')
    self.assertEqual(aside.read_text(), 'zeros\n')

  def test_life_without_a_second_has_no_goodput(self):
    life = goodput.open_life(self.root, 0, self.clock)
    self.assertIsNone(goodput.goodput(life.spent()))
    life.close()


if __name__ == '__main__':
  absltest.main()
