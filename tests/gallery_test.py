"""Tests of `experiments/gallery`: saved data, figures and sentences."""

import copy
import json
import re
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import make_gallery
from experiments.gallery import (
  characters,
  comparing,
  digits,
  diloco_kin,
  few_digits,
  g2_drift,
  g3_unlike_data,
  g4_topology,
  g5_batch_statistics,
  g6_diloco,
  g7_generalization,
  page,
  presets,
)
from experiments.papers import images, keeping, results_page
from experiments.running.flags import algorithm_flags
from experiments.tools import drawing, figure_files, readme
import prsgd_jax as pr
from prsgd_jax.data import values
from prsgd_jax.data.datasets import load_dataset
from tests import binaries, looks

ENTRIES = make_gallery.all_entries()
KEY = jax.random.key(0, impl='threefry2x32')


def scaled(data):
  """The data with other positive numbers in every list of floats."""
  rng = np.random.default_rng(0)

  def other(value):
    if isinstance(value, dict):
      return {k: other(v) for k, v in value.items()}
    if isinstance(value, list):
      return [other(v) for v in value]
    if not isinstance(value, float) or value <= 0:
      return value
    return value * float(np.exp(rng.normal()))

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
    periods, rates = (4, 8, 16), (0.05, 0.4)
    cells = np.ones((2, 3, 3)) * [1.0, 1.1, 1.2]
    cells[:, -1] *= 2
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
    # At equal bytes, the others have I = 8, with half of the loss.
    self.assertEqual(ratios, ['8', '8', '8', '0.25', '2', '0.5', '4'])


class DriftTest(absltest.TestCase):
  def test_every_preset_of_one_algorithm_is_a_run(self):
    found = presets.on_digits()
    names = map(algorithm_flags.find, readme.names())  # of second names, too
    self.assertContainsSubset(names, found)
    muon = presets.make(
      found['muloco'], partition='dirichlet', dirichlet_alpha=1.0, seed=3
    )
    self.assertEqual(muon.optimizer, 'muon')
    self.assertEqual((muon.partition, muon.seed), ('dirichlet', 3))
    self.assertEqual(presets.make(found['k_avg']).options, {'period': 16})

  def test_drift_by_hand(self):
    params = {'a': np.array([[3.0], [5.0]]), 'b': np.array([[[0.0]], [[6.0]]])}
    # The average is (4, 3), at a distance of (1, 3) from both replicas.
    np.testing.assert_allclose(g2_drift._spread(params), 10**0.5 / 5, rtol=1e-6)

  def test_algorithms_are_counted_by_their_drift(self):
    still, back, away = [0.0, 0.0], [0.0, 2.0], [1.0, 2.0]
    drifts = {
      'ssgd': still, 'k_avg': back, 'one_shot_averaging': away,
      'd_psgd': away, 'qg_dsgdm': away, 'choco_sgd': away,
    }  # fmt: skip
    data = {'drifts': {name: [x] * 3 for name, x in drifts.items()}}
    first = g2_drift.sentences(data)[0]
    self.assertEqual(re.findall(r'\d+', first), ['6', '1', '1', '4', '2'])
    self.assertIn('one_shot_averaging and d_psgd', first)  # they are equal


class UnlikeDataTest(absltest.TestCase):
  def test_the_best_rate_is_by_all_seeds(self):
    losses = np.ones((1, 3, 1, 3))
    losses[0, 1], losses[0, 2] = 0.5, (0.1, 1.0, 2.0)
    data = {
      'losses': {'SCAFFOLD': losses.tolist()}, 'alphas': [1.0],
      'periods': [4],
    }  # fmt: skip
    found = g3_unlike_data.at_best(data, 'SCAFFOLD', 1.0, 4)
    np.testing.assert_array_equal(found, [0.5] * 3)

  def test_local_sgd_at_equal_bytes_is_interpolated(self):
    self.assertEqual(g3_unlike_data.relative_bytes('SCAFFOLD'), 2)
    losses = np.ones((1, 1, 2, 3))
    losses[..., 1, :] = 4.0
    data = {
      'losses': {'local SGD': losses.tolist()}, 'alphas': [1.0],
      'periods': [16, 64],
    }  # fmt: skip
    found = g3_unlike_data.between(data, 'local SGD', 1.0, 32)
    np.testing.assert_allclose(found, [2.0] * 3)

  def test_replicas_draw_from_their_shards(self):
    dataset = load_dataset('digits', binaries.digits_dir())
    labels = dataset.train['label']
    shards = [np.flatnonzero(labels == c)[:20] for c in range(2)]
    own = digits.problem(dataset, shards)
    params = {
      f'Dense_{i}': {'kernel': np.zeros(shape), 'bias': np.zeros(shape[1])}
      for i, shape in enumerate(((64, digits.HIDDEN), (digits.HIDDEN, 10)))
    }
    params['Dense_1']['bias'][1] = 50
    zero, one = (own.loss_fn(params, 0, i, KEY) for i in range(2))
    np.testing.assert_allclose([zero, one], [50, 0], atol=1e-3)


class TopologyTest(parameterized.TestCase):
  @parameterized.parameters(*g4_topology.BIASED)
  def test_a_step_leaves_the_fixed_point(self, name):
    rng = np.random.default_rng(0)
    root, g = rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2, 4))
    h = root @ root.transpose(0, 2, 1) + np.eye(2)
    w = np.array([[0.5, 0.3, 0.2], [0.3, 0.6, 0.1], [0.2, 0.1, 0.7]])
    x = g4_topology.fixed_point(name, w, 0.1, h, g)
    step = np.stack([0.1 * (h[i] @ x[i] - g[i]) for i in range(3)])
    mixed = np.einsum('ij,jdc->idc', w, x)
    after = mixed - step
    if name == 'diffusion':
      after = mixed - np.einsum('ij,jdc->idc', w, step)
    np.testing.assert_allclose(after, x, atol=1e-12)
    self.assertGreater(g4_topology.bias(x, h, g), 0.01)
    # With like data, all replicas are at the optimum.
    same = [np.stack([v[0]] * 3) for v in (h, g)]
    like = g4_topology.fixed_point(name, w, 0.1, *same)
    self.assertLess(g4_topology.bias(like, *same), 1e-12)

  def test_the_saved_biases_are_the_solved_ones(self):
    path = make_gallery.RESULTS / 'g4_topology.json'
    data = json.loads(path.read_text())['data']
    for name, graphs in data['solved'].items():
      for graph, solved in graphs.items():
        seen = data['measured'][name][graph]
        np.testing.assert_allclose(seen, solved, rtol=1e-3, atol=1e-5)


class BatchStatisticsTest(absltest.TestCase):
  def test_averages_that_include_the_statistics_leave_their_mean(self):
    def loss_fn(params, model_state, batch, key):
      del key
      seen = params * batch.mean()
      moved = 0.9 * model_state['mean'] + 0.1 * seen
      return jnp.square(params - batch).mean(), ({'mean': moved}, {})

    def eval_fn(params, model_state, batch):
      far = jnp.abs(batch - params * model_state['mean'])
      return {'accuracy': jnp.clip(1 - far, 0, 1)}

    def draw_batch(data, step, replica, key):
      return data[replica] + jax.random.normal(key, (4,)) / 64

    offsets = np.array([0.1, 0.6], np.float32)
    data = values.drawn(offsets, draw_batch)
    test = np.linspace(0.08, 0.1, 5, dtype=np.float32)
    found = []
    for fields in (('params',), ('params', 'model_state')):
      average = pr.sync(pr.mixing.mean(), fields)
      trainer = pr.trainer(
        pr.k_avg(optax.sgd(0.1), period=4, average=average),
        loss_fn, num_replicas=2, eval_fn=eval_fn, num_devices=1,
      )  # fmt: skip
      state = trainer.init(np.float32(1), {'mean': np.float32(0)}, seed=0)
      found.append((trainer, trainer.run(state, data, 8)[0]))
    own, included = (state.model_state['mean'] for _, state in found)
    np.testing.assert_allclose(included, [own.mean()] * 2, rtol=1e-5)
    errors = g5_batch_statistics.errors(*found[0], data, test)
    params = found[0][1].params.mean()
    for error, means in zip(errors, (own, included)):
      far = np.abs(test - params * means[:, None]).mean()
      np.testing.assert_allclose(error, 100 * far, rtol=1e-4)
    self.assertGreater(abs(errors[0] - errors[1]), 0.1)
    # All batches have the mean 0.35; after 8 steps, the averages are below it.
    # The standard deviation of the noise of the batches is 0.04 points.
    estimated = np.abs(test - 0.35 * params**2).mean()
    self.assertAlmostEqual(errors[2], 100 * estimated, delta=0.1)
    self.assertGreater(abs(errors[2] - errors[1]), 0.6)

  def test_replicas_draw_from_their_rows(self):
    examples = images.Examples(jnp.zeros((6, 1)), jnp.arange(6))
    rows = jnp.array([[0, 2, 4], [1, 3, 5]])
    for replica in range(2):
      batch = g5_batch_statistics.draw_batch((examples, rows), 0, replica, KEY)
      self.assertCountEqual(
        np.unique(batch['label']), np.asarray(rows[replica])
      )

  def test_differences_are_from_averaged_statistics(self):
    errors = np.ones((3, 2, 5, 2, 3)) * [[[10.0]]]
    errors[0] += 3  # one replica's own, everywhere
    errors[2, 0, 2, 1] -= 0.25  # re-estimated, with like data
    errors[2, 1, 1, 0] += 1  # with unlike data, before the drop
    errors[2, 1, -1] -= [[4.0], [0.5]]  # with unlike data and the longest I
    data = {
      'errors': dict(
        zip(g5_batch_statistics.TREATMENTS, errors.tolist(), strict=True)
      ),
      'alphas': [100.0, 1.0], 'periods': [1, 4, 16, 64, 256],
    }  # fmt: skip
    found = ' '.join(ENTRIES['g5_batch_statistics'].sentences(data))
    points = re.findall(r'(-?[\d.]+) points', found)
    self.assertEqual(points, ['3', '3', '3', '3', '-0.25', '1', '-4', '-0.5'])
    self.assertIn('most at I = 16 after the drop, by -0.25 points', found)


class GeneralizationTest(parameterized.TestCase):
  @parameterized.parameters('drops', 'cosine')
  def test_intervals_of_qsr_grow_as_the_rate_falls(self, name):
    decay = g7_generalization.DECAYS[name]
    steps = np.arange(g7_generalization.NUM_STEPS)
    fires = g7_generalization.schedule_of('QSR', 1.0, decay)(steps)
    ends = np.append(0, np.flatnonzero(fires) + 1)
    rates = decay(ends[:-1], len(steps))
    wanted = np.maximum(
      g7_generalization.BASE_PERIOD, np.floor(rates**-2 * (1 + 1e-6))
    )
    np.testing.assert_array_equal(np.diff(ends)[:-1], wanted[:-1])
    self.assertEqual(ends[-1], len(steps))
    self.assertGreater(len(set(wanted)), 1)

  def test_post_local_sgd_switches_at_the_first_drop(self):
    steps = np.arange(g7_generalization.NUM_STEPS)
    rates = g7_generalization.step_decay(steps, len(steps))
    fires = g7_generalization.schedule_of('post-local SGD', 16, None)(steps)
    np.testing.assert_array_equal(rates[fires & (steps % 16 != 15)], 1)
    self.assertTrue(fires[rates == 1].all())
    np.testing.assert_allclose(sorted(set(rates)), [0.01, 0.1, 1])

  def test_settings_are_not_chosen_by_the_test_examples(self):
    values = np.ones((2, 2, 3))
    values[1, 0] = 0.5
    own = {
      'validation_error': values.tolist(),
      'test_error': np.arange(12.0).reshape(2, 2, 3).tolist(),
    }
    data = {'measured': {'drops': {'QSR': own}}}
    self.assertEqual(g7_generalization.best(data, 'drops', 'QSR'), (1, 0))
    at_best = g7_generalization.at_best(data, 'drops', 'QSR', 'test_error')
    np.testing.assert_array_equal(at_best, [6, 7, 8])
    by_rate = g7_generalization.by_rate(data, 'drops', 'QSR', 'test_error')
    np.testing.assert_array_equal(by_rate, [[6, 7, 8], [3, 4, 5]])


class FewDigitsTest(absltest.TestCase):
  def test_splits_share_no_example(self):
    dataset = load_dataset('digits', binaries.digits_dir())
    parts = few_digits.split(dataset, 0)
    sizes = [len(part['label']) for part in parts.values()]
    total = len(dataset.train['label']) + len(dataset.test['label'])
    self.assertEqual(sizes, [256, 512, total - 768])
    both = np.concatenate([part['image'] for part in parts.values()])
    both = both.reshape(total, -1)
    every = [dataset.train['image'], dataset.test['image']]
    every = np.concatenate(every).reshape(total, -1)
    np.testing.assert_array_equal(
      both[np.lexsort(both.T)], every[np.lexsort(every.T)]
    )

  def test_shifts_move_a_pixel_to_its_neighbors(self):
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 1, 1] = 7
    found = few_digits.shifts(image)[:, 0, :, :, 0]
    places = [tuple(np.argwhere(x == 7)[0]) for x in found]
    self.assertLen(set(places), 9)
    np.testing.assert_array_equal(found.sum((1, 2)), 7)

  def test_a_diverged_run_guesses(self):
    good, bad = {'a': np.ones(2)}, {'a': np.array([1, np.nan])}
    self.assertIs(few_digits.finite_or_zero(good), good)
    np.testing.assert_array_equal(few_digits.finite_or_zero(bad)['a'], [0, 0])


class DilocoTest(absltest.TestCase):
  def data(self):
    """Losses of three seeds at momenta 0.6 and 0.9 and three rates."""
    losses = np.full((2, 2, 3, 3), [3.0, 3.1, 3.2])
    losses[0, 1, 0] -= 1  # the lowest mean, at the lowest rate
    losses[0, 0, 2, 0] = 1  # the lowest loss of a seed
    losses[1, 0, 1] -= 0.5
    return {
      'losses': {'DiLoCo': losses.tolist()}, 'bytes': {'DiLoCo': [4.0, 1.0]},
      'momenta': {'DiLoCo': [0.6, 0.9]}, 'rates': {'DiLoCo': [1, 3, 10]},
    }  # fmt: skip

  def test_the_best_setting_is_by_all_seeds(self):
    found = g6_diloco.best(self.data(), 'DiLoCo')
    np.testing.assert_allclose(found.losses, [[2, 2.1, 2.2], [2.5, 2.6, 2.7]])
    np.testing.assert_array_equal(found.momenta, [0.9, 0.6])
    np.testing.assert_array_equal(found.rates, [1, 3])
    np.testing.assert_array_equal(found.at_edge, [0, 1])

  def test_losses_are_interpolated_in_the_logarithm_of_the_bytes(self):
    data = self.data()
    for sent, expected in ((1, 2.5), (2, 2.25), (4, 2)):
      found = g6_diloco.at_bytes(data, 'DiLoCo', sent)
      np.testing.assert_allclose(found, [expected + x for x in (0, 0.1, 0.2)])

  def test_bytes_are_those_of_the_ledger(self):
    def sent(label, period):
      own = diloco_kin.METHODS[label]._replace(periods=(period,))
      return diloco_kin.megabytes(own, num_replicas=4)[0]

    few = sent(diloco_kin.LOCAL, 16)
    np.testing.assert_allclose(sent(diloco_kin.SYNCHRONOUS, 1), 16 * few)
    self.assertEqual(sent(diloco_kin.LARGE, 16), few)
    # 3 messages of 4 bits instead of 1.5 of 32: H = 4 sends as H = 16.
    coded = sent(diloco_kin.STREAMING, 4)
    np.testing.assert_allclose(coded, few, rtol=0.02)

  def test_muon_is_for_the_matrices_of_the_hidden_layers(self):
    params = jax.eval_shape(characters.problem(1).start, KEY)
    found = diloco_kin.hidden_matrices(params)
    chosen = jax.tree_util.tree_leaves_with_path(
      found, is_leaf=lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers)
    )
    names = {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in chosen
    }
    attention = 'MultiHeadDotProductAttention_0'
    self.assertEqual(
      names,
      {f'{attention}/{x}/kernel' for x in ('key', 'out', 'query', 'value')}
      | {'Dense_0/kernel', 'Dense_1/kernel'},
    )

  def test_frequencies_of_characters_are_better_than_guessing(self):
    self.assertBetween(characters.unigram_loss(), 3.2, 3.4)
    self.assertLess(characters.unigram_loss(), characters.GUESSING)


class ComparingTest(absltest.TestCase):
  def test_differences_in_words(self):
    def words(ones, others):
      return comparing.difference(ones, others, unit='nats').higher_or_lower()

    self.assertEqual(
      words([3.0, 3.1, 3.2], [2.0, 2.0, 2.3]), '1 nats higher (0.75 to 1.2)'
    )
    self.assertEqual(words([1] * 3, [2] * 3), '1 nats lower (1 to 1)')
    self.assertIn(
      'so no order is shown', words([1.0, 2.0, 3.0], [1.1, 1.9, 3.0])
    )

  def test_interval_is_students_of_the_logarithms(self):
    found = comparing.ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    # 4.303 is Student's quantile of two degrees of freedom, as in its tables.
    width = np.exp(4.303 * np.log(2) / 3**0.5)
    np.testing.assert_allclose(found, [2, 2 / width, 2 * width], rtol=1e-3)
    self.assertIn('no order is shown', str(found))

  def test_interval_of_differences_is_students(self):
    found = comparing.difference([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    width = 4.303 * np.std([0, 1, 3], ddof=1) / 3**0.5
    mean = 4 / 3
    np.testing.assert_allclose(
      found[:3], [mean, mean - width, mean + width], rtol=1e-3
    )
    self.assertIn('no order is shown', str(found))

  def test_two_seeds_are_too_few(self):
    with self.assertRaisesRegex(ValueError, 'at least 3 seeds'):
      comparing.ratio([1.0, 2.0], [1.0, 2.0])
    with self.assertRaisesRegex(ValueError, 'at least 3 seeds'):
      comparing.difference([1.0, 2.0], [1.0, 2.0])
    with self.assertRaisesRegex(ValueError, 'positive'):
      comparing.ratio([1.0, 2.0, 0.0], [1.0, 2.0, 1.0])


class DigitsTest(absltest.TestCase):
  def test_losses_are_by_axis_and_a_diverged_run_is_guessing(self):
    own = digits.problem(load_dataset('digits', binaries.digits_dir()))
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
