"""Tests of `experiments/plot.py`, as a user calls it."""

import pathlib
import tempfile

from absl.testing import absltest, parameterized
import matplotlib.image

from experiments import compare, plot, train
from tests import binaries, written_runs

SMALL = (
  '--num_devices=2', '--batch_size=8', '--num_steps=8', '--log_every=4',
  '--eval_every=4', '--checkpoint_every=8', '--noprogress',
)  # fmt: skip


class PlotTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.figure = self.root / 'figure.png'

  def plot(self, *args):
    return binaries.call(plot, f'--output={self.figure}', *args)

  def test_draws_the_runs_of_train_and_of_compare(self):
    for binary, name, *flags in (
      (train, 'trained', '--algorithm=ssgd', '--seed=1'),
      (compare, 'compared', '--run=ssgd', '--run=k_avg,period=2'),
    ):
      workdir = f'--workdir={self.root / name}'
      outcome = binaries.call(binary, *SMALL, workdir, *flags)
      self.assertEqual(outcome.code, 0, outcome.err)
    both = [str(self.root / name) for name in ('trained', 'compared')]
    runs = plot.figures.read_runs(plot.figures.find_runs(both))
    # Those of ssgd are two seeds of the same.
    self.assertEqual(
      {k: len(v) for k, v in plot.figures.group(runs).items()},
      {'ssgd': 2, 'k_avg period=2': 1},
    )
    outcome = self.plot(*both, '--x=epoch,modeled_seconds', '--y=loss')
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertIn(f'figure of 3 runs: {self.figure}', outcome.out)
    height, width, _ = matplotlib.image.imread(self.figure).shape
    self.assertEqual((height, width), (420, 1200))

  @parameterized.parameters('figure', 'figure.', 'a.figure.png', '.png')
  def test_names_the_file_that_it_writes(self, name):
    written_runs.write(self.root, 'run', losses=(0.8, 0.7))
    given = self.root / 'figures' / name
    outcome = self.plot(str(self.root / 'run'), f'--output={given}')
    self.assertEqual(outcome.code, 0, outcome.err)
    named = outcome.out.strip().partition('figure of 1 runs: ')[2]
    (written,) = (self.root / 'figures').iterdir()
    self.assertEqual(named, str(written))
    self.assertStartsWith(written.read_bytes(), b'\x89PNG')
    self.assertStartsWith(written.name, name)

  def test_writes_other_formats_with_a_title_and_other_scales(self):
    written_runs.write(self.root, 'run', losses=(0.8, 0.7))
    path = self.root / 'figure.svg'
    outcome = self.plot(
      str(self.root / 'run'), f'--output={path}', '--title=A title',
      '--y=loss,consensus_distance', '--linear=loss',
    )  # fmt: skip
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertIn('<!-- A title -->', path.read_text())
    self.assertIn('<!-- ssgd -->', path.read_text())

  @parameterized.parameters(
    ('requires directories of runs', ()),
    ('nothing holds no run', ('nothing',)),
    ('unknown --x=time; use one of step', ('run', '--x=time')),
    ('unknown --y=speed; use one of loss', ('run', '--y=speed')),
    ('--x is empty', ('run', '--x=')),
    ('--log=rounds is not an axis of this figure', ('run', '--log=rounds')),
    ('Format .* is not supported', ('run', '--output=figure.foo')),
    ('--output=/ is a directory; pass a file', ('run', '--output=/')),
  )
  def test_bad_input_is_one_line(self, message, args):
    written_runs.write(self.root, 'run', losses=(0.8, 0.7))
    placed = [a if a[0] == '-' else str(self.root / a) for a in args]
    outcome = self.plot(*placed)
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^plot.py: error: .*{message}')
    self.assertEqual(outcome.err.count('\n'), 1)
    self.assertFalse(self.figure.exists())


if __name__ == '__main__':
  absltest.main()
