"""Tests of `experiments/running/flags/algorithm_flags.py`."""

import inspect

from absl.testing import absltest, parameterized
import numpy as np
import optax

from experiments.running.flags import algorithm_flags, config, named
import prsgd_jax as pr

TX = optax.sgd(0.1)


class AlgorithmFlagsTest(parameterized.TestCase):
  @parameterized.parameters(*algorithm_flags.ALGORITHMS)
  def test_every_keyword_has_a_flag_that_says_what_it_is(self, name):
    self.assertIn(name, pr.__all__)
    for flag in algorithm_flags.own_flags(name):
      self.assertIn(flag, config.OPTIONS)
      if flag not in ('when', 'local'):  # of a type of algorithms
        self.assertIn(f'{name}', config.flags.FLAGS[flag].help)

  def test_every_algorithm_of_the_library_is_there(self):
    functions = {*pr.algorithms.__all__} - {'local_sgd'}
    self.assertEqual(set(algorithm_flags.ALGORITHMS), functions)

  def test_lists_are_separated_by_commas_or_plus(self):
    for text in ('2,3', '2+3'):
      algorithm = algorithm_flags.build(
        'pr_sgd_heterogeneous', TX, {'local_steps': text}, {}
      )
      costs = algorithm.cost(pr.base.Replica(np.zeros(1)), 2, np.arange(3))
      np.testing.assert_array_equal(costs[0].active, [[1, 1], [1, 1], [0, 1]])

  def test_names_may_have_numbers(self):
    algorithm = algorithm_flags.build(
      'd_psgd', TX, {'mixing': 'erdos_renyi:1'}, {}
    )
    (sent,) = [
      c
      for c in algorithm.cost(pr.base.Replica(np.zeros(1)), 4, np.arange(1))
      if isinstance(c, pr.base.Traffic)
    ]
    self.assertEqual(sent.waits, 4)  # everybody

  @parameterized.parameters(
    ('top_k:0.5', 16 * (4 + 2)),
    ('top_k:0.5:e3m0', 16 * 2 + 16 // 2 + 4),
    ('chunked_top_k:2:4', 16 * 4 + 16 * 2 // 8),
    ('feedback:top_k:0.5', 16 * (4 + 2)),
    ('feedback:0.9:top_k:0.5:e3m0', 16 * 2 + 16 // 2 + 4),
    ('difference:signs', 32 // 8 + 4),
    ('among_senders:feedback:top_k:0.5', 16 * (4 + 2)),
    ('frequencies:4:feedback:0.999:chunked_top_k:2:4', 16 * 4 + 16 * 2 // 8),
    ('small_float:3:0', 32 // 2 + 4),
  )
  def test_codecs_may_have_codecs_inside(self, text, size):
    codec = named.codec('codec', text)
    compressor = (
      codec.compressor if isinstance(codec, pr.codecs.Codec) else codec
    )
    value = np.zeros(32, np.float32)
    self.assertEqual(pr.codecs.coded_bytes(compressor, value), size)

  def test_every_compressor_and_mixing_of_the_library_has_a_name(self):
    # Those made from an array or a graph have no name on the command line.
    unnamed = {
      'graph', 'dense', 'weighted_mean', 'metropolis_hastings', 'matcha'
    }  # fmt: skip
    for kind, table in (
      (pr.mixing.Mixing, named.MIXINGS),
      (pr.codecs.Compressor, named.COMPRESSORS),
      (pr.codecs.Codec, named.CODECS),
    ):
      functions = {
        name: getattr(room, name)
        for room in (pr.mixing, pr.graphs, pr.codecs)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
      }
      made = {
        name
        for name, function in functions.items()
        if inspect.signature(function).return_annotation is kind
      }
      self.assertEqual(made - unnamed, {*table} - unnamed)

  def test_close_names_are_suggested(self):
    with self.assertRaisesRegex(ValueError, 'did you mean hier_avg?'):
      algorithm_flags.find('hieravg')

  @parameterized.parameters(
    ('d_psgd', {'mixing': 'rung'}, 'unknown --mixing=rung; use one of ring'),
    ('d_psgd', {'mixing': 'ring:x'}, "--mixing expects float numbers, got 'x'"),
    ('d_psgd', {'mixing': 'mean:1:2'}, '--mixing=mean:1:2: too many'),
    ('d_psgd', {'mixing': 'torus:2.5'}, 'num_rows must be an int.*, got 2.5'),
    ('d_psgd', {'mixing': 'torus:0'}, 'num_rows must be an int.*, got 0'),
    ('d_psgd', {'mixing': 'erdos_renyi:1:0.5'}, 'seed must be an .*, got 0.5'),
    (
      'fedpaq',
      {'period': 4, 'compressor': 'stochastic_levels:7.9'},
      'levels must be an integer >= 1, got 7.9',
    ),
    ('diloco', {'period': 4, 'outer': 'sgd:-1'}, 'numbers must be > 0'),
    ('pr_sgd_heterogeneous', {'local_steps': '1,a'}, "int numbers, got 'a'"),
  )
  def test_refused(self, name, options, message):
    with self.assertRaisesRegex(ValueError, message):
      algorithm_flags.build(name, TX, options, {})


if __name__ == '__main__':
  absltest.main()
