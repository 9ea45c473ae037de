"""Tests of `experiments/gallery`: saved data, figures and sentences."""

import copy
import json
import re
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
import optax

from experiments import make_gallery
from experiments.gallery import comparing, digits, page
from experiments.papers import keeping, results_page
from experiments.tools import drawing, figure_files
import prsgd_jax as pr
from tests import binaries, looks

ENTRIES = make_gallery.all_entries()


def scaled(data):
  """The data with other positive numbers in every list of floats."""
  rng = np.random.default_rng(0)

  def other(value):
    if isinstance(value, dict):
      return {k: other(v) for k, v in value.items()}
    if isinstance(value, list):
      return [other(v) for v in value]
    return value * float(np.exp(rng.normal())) if 0 < value < 1e9 else value

  return {
    key: other(value) if isinstance(value, dict) else copy.deepcopy(value)
    for key, value in data.items()
  }


class KeptTest(parameterized.TestCase):
  @parameterized.parameters(*[(name,) for name in ENTRIES])
  def test_figure_and_sentences_are_of_the_saved_data(self, name):
    entry = ENTRIES[name]
    self.assertEqual(entry.target.name, name)
    path = make_gallery.RESULTS / f'{name}.json'
    kept = json.loads(path.read_text())
    self.assertGreaterEqual(len(kept['seeds']), 3)
    figure = keeping.make_figure(entry.target, kept['data'])
    self.assertEqual(
      figure_files.digest(figure),
      figure_files.read_digest(path.with_suffix('.png')),
      'draw it again: python -m experiments.make_gallery --redraw',
    )
    self.assertEqual(looks.faults(figure), [])
    self.assertLessEqual(figure.get_figwidth(), drawing.WIDTH)
    sentences = entry.sentences(kept['data'])
    others = entry.sentences(scaled(kept['data']))
    self.assertLen(sentences, 3)
    for sentence, other in zip(sentences, others, strict=True):
      self.assertTrue(sentence.endswith('.'))
      self.assertNotEqual(sentence, other)  # because its numbers are measured

  def test_page_is_of_the_saved_data(self):
    found = results_page.read(make_gallery.RESULTS)
    self.assertEqual(
      page.format_page(found, ENTRIES),
      page.PAGE.read_text(),
      'write it again: python -m experiments.make_gallery --redraw',
    )
    self.assertCountEqual([outcome['name'] for outcome in found], ENTRIES)

  def test_redraw_runs_nothing(self):
    with (
      mock.patch.object(make_gallery, '_run', side_effect=AssertionError),
      mock.patch.object(figure_files, 'save') as save,
      mock.patch.object(page.writing, 'write_text') as write,
    ):
      outcome = binaries.call(make_gallery, '--redraw')
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertLen(save.call_args_list, len(ENTRIES))
    write.assert_called_once_with(page.PAGE, page.PAGE.read_text())

  def test_an_unknown_entry_is_named(self):
    outcome = binaries.call(make_gallery, '--entries=g9_none')
    self.assertEqual(outcome.code, 1)
    self.assertIn("unknown entry 'g9_none'; use some of g1_", outcome.err)


class MomentumBuffersTest(absltest.TestCase):
  def test_sentences_name_what_holds(self):
    entry = ENTRIES['g1_momentum_buffers']
    periods, rates = (4, 16), (0.05, 0.4)
    cells = np.ones((2, 2, 3)) * [1.0, 1.1, 1.2]
    losses = {
      order: {
        buffers: (cells * factor).tolist()
        for buffers, factor in (('kept', 8), ('averaged', 2), ('reset', 1))
      }
      for order in 'AC'
    }
    data = {'losses': losses, 'rates': rates, 'periods': periods}
    found = ' '.join(entry.sentences(data))
    ratios = re.findall(r'([\d.]+) times', found)
    self.assertEqual(ratios, ['8', '8', '8', '0.25', '2'])


class ComparingTest(absltest.TestCase):
  def test_interval_is_students_of_the_logarithms(self):
    found = comparing.ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    # 4.303 is Student's quantile of two degrees of freedom, as in its tables.
    width = np.exp(4.303 * np.log(2) / 3**0.5)
    np.testing.assert_allclose(found, [2, 2 / width, 2 * width], rtol=1e-3)
    self.assertIn('no order is shown', str(found))

  def test_two_seeds_are_too_few(self):
    with self.assertRaisesRegex(ValueError, 'at least 3 seeds'):
      comparing.ratio([1.0, 2.0], [1.0, 2.0])
    with self.assertRaisesRegex(ValueError, 'positive'):
      comparing.ratio([1.0, 2.0, 0.0], [1.0, 2.0, 1.0])


class DigitsTest(absltest.TestCase):
  def test_losses_are_by_axis_and_a_diverged_run_is_guessing(self):
    own = digits.problem(binaries.digits_dir())
    grid = {'scale': (1.0, 1e30), 'rate': (0.0, 0.1, 0.2)}
    found = digits.final_losses(
      own,
      lambda scale, rate: pr.ssgd(optax.sgd(scale * rate)),
      grid,
      seeds=(0, 1),
      num_steps=3,
    )
    self.assertEqual(found.shape, (2, 3, 2))
    self.assertTrue((found[1, 1:] == digits.GUESSING).all())
    np.testing.assert_allclose(found[0, 0], found[1, 0])  # rate 0
    self.assertTrue((found[0, 2] < found[0, 1]).all())
    self.assertTrue((found[0, 1] < found[0, 0]).all())


if __name__ == '__main__':
  absltest.main()
