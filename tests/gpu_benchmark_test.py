"""Tests of the benchmark of a GPU, at tiny sizes on the CPU."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from experiments import gpu_benchmark
from experiments.gpu import (
  cases,
  contestants,
  figure_runs,
  peaks,
  report,
  store,
  timing,
)
from experiments.gpu.cases import Case
from experiments.papers.headline import small_images
from experiments.running.process import exit_codes
from experiments.running.records import writing
import prsgd_jax as pr
from tests import binaries

MLPS = [
  Case(cases.MLP, way, 2, 2, 'float32', 2)
  for way in (*cases.DENSE_WAYS, cases.ENGINES[2])
]


class CasesTest(absltest.TestCase):
  def test_names_are_unique_and_the_ways_come_first(self):
    for tiny in (False, True):
      found = cases.all_cases(tiny=tiny)
      self.assertLen({case.name for case in found}, len(found))
    found = cases.all_cases()
    self.assertEqual([c.way for c in found[:5]], [*cases.WAYS, cases.ENGINE])
    self.assertEqual({c.num_replicas for c in found}, {*cases.REPLICAS})
    self.assertLessEqual({*cases.STEPS}, {c.num_steps for c in found})


class ContestantsTest(parameterized.TestCase):
  def case(self, way, **changed):
    return Case(cases.RESNET, way, 2, 3, 'float32', 1)._replace(**changed)

  def test_groups_compute_what_vmap_computes(self):
    vmap = self.case(cases.VMAP)
    params, model_state, *_ = jax.eval_shape(
      lambda: contestants.first_state(vmap, cases.TINY)
    )
    rng = np.random.default_rng(0)
    # Unequal replicas, because equal ones would hide a confusion of groups.
    params, model_state = jax.tree.map(
      lambda x: rng.normal(0.2, 0.2, x.shape).astype(x.dtype),
      (params, model_state),
    )
    batch = contestants.batch_of(
      vmap, contestants.examples(vmap, cases.TINY), jnp.int32(0)
    )
    one, other = (
      jax.jit(
        contestants.gradients_of(own, contestants.make_task(own, cases.TINY))
      )(params, model_state, batch)
      for own in (vmap, self.case(cases.GROUPED))
    )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
      one,
      other,
    )

  def test_vmap_and_groups_differ_in_the_gradient_of_the_weights(self):
    def traced(way, n=4):
      case = self.case(way, num_replicas=n)
      task = contestants.make_task(case, cases.TINY)
      params, model_state, *_ = jax.eval_shape(
        lambda: contestants.first_state(case, cases.TINY)
      )
      batch = jax.eval_shape(
        lambda: contestants.batch_of(
          case, contestants.examples(case, cases.TINY), jnp.int32(0)
        )
      )
      gradients = contestants.gradients_of(case, task)
      jaxpr = jax.make_jaxpr(gradients)(params, model_state, batch)
      return timing.convolutions(jaxpr.jaxpr)

    self.assertEqual(
      traced(cases.VMAP), {'feature groups 4, batch groups 1': 20}
    )
    self.assertEqual(
      traced(cases.GROUPED),
      {
        'feature groups 1, batch groups 4': 7,
        'feature groups 4, batch groups 1': 13,
      },
    )
    self.assertEqual(
      traced(cases.UNROLLED, 2), {'feature groups 1, batch groups 1': 40}
    )

  def test_ways_train_equally_and_count_their_program(self):
    losses = {}
    for case in MLPS[:-1]:
      run, numbers = contestants.begin(case, cases.TINY)
      losses[case.way] = np.asarray(run())
      self.assertGreater(numbers['memory'], 0)
      self.assertEqual(numbers['convolutions'], {})
    for way in cases.DENSE_WAYS:
      np.testing.assert_allclose(losses[way], losses[cases.VMAP], rtol=1e-5)

  def test_operations_are_those_of_matrix_products(self):
    case = Case(cases.MLP, cases.VMAP, 2, 16, 'float32')
    size = cases.TINY._replace(hidden=(64,))
    inputs = 3 * size.pixels**2
    # Forward and the two gradients, but none of the images.
    products = 2 * 16 * (2 * inputs * 64 + 3 * 64 * cases.CLASSES)
    flops = contestants.cost(case, size)['flops']
    self.assertAlmostEqual(flops / (2 * products), 1, delta=0.1)


class ProgramTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.wanted, self.begun = MLPS[:1], []
    self.enterContext(
      mock.patch.object(cases, 'all_cases', lambda *, tiny: self.wanted)
    )

  def call(self, *args, fail_at=None, error=None):
    begin = contestants.begin

    def watched(case, size):
      self.begun.append(case.way)
      if len(self.begun) == fail_at:
        raise error
      return begin(case, size)

    with (
      mock.patch.object(contestants, 'begin', watched),
      mock.patch.object(peaks, 'measure', lambda size: PEAKS),
      mock.patch.object(jax, 'clear_caches'),
    ):
      return binaries.call(
        gpu_benchmark, f'--gpu_dir={self.root}', '--reserve=0', *args
      )

  def results(self):
    return json.loads((self.root / store.NAME).read_text())

  def test_a_second_call_goes_on_with_the_missing_pieces(self):
    self.wanted = MLPS
    # As if the process were killed, because nothing catches it.
    outcome = self.call(fail_at=3, error=KeyboardInterrupt())
    self.assertEqual(outcome.code, exit_codes.INTERRUPTED)
    self.assertEqual(self.results()['attempts'], {MLPS[2].name: 1})
    self.assertLen(self.results()['done'], 3)  # with the limits
    outcome = self.call()
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertEqual(
      self.begun, ['vmap', 'unrolled', 'loop', 'loop', 'engine, loop']
    )
    self.assertEqual(self.results()['attempts'], {})
    self.call()
    self.assertLen(self.begun, 5)
    table = (self.root / 'table.md').read_text()
    self.assertIn('4 of 4 cases are measured', table)
    self.assertIn('| mlp | float32 | 2 x 2 | engine, loop |', table)
    self.assertIn('4 of 4', self.call('--status').out)

  def test_too_little_memory_is_a_result(self):
    error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    outcome = self.call(fail_at=1, error=error)
    self.assertEqual(outcome.code, 0, outcome.err)
    failed = self.results()['done'][MLPS[0].name]
    self.assertEqual(
      failed, {'failed': 'JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory'}
    )
    self.assertIn('failed', (self.root / 'table.md').read_text())

  def test_a_piece_that_ends_the_process_is_given_up(self):
    for _ in range(store.ATTEMPTS):
      self.call(fail_at=len(self.begun) + 1, error=KeyboardInterrupt())
    self.assertEqual(self.begun, ['vmap'] * store.ATTEMPTS)
    self.call()
    self.assertIn('failed', self.results()['done'][MLPS[0].name])

  def test_no_time_left_is_more_to_do(self):
    outcome = self.call('--reserve=1000')
    self.assertEqual(outcome.code, exit_codes.STOPPED)
    self.assertIn('more to do; repeat the command', outcome.out)
    self.assertEmpty(self.begun)

  @parameterized.parameters('--minutes=0', '--reserve=-1', '--loops_share=2')
  def test_a_wrong_flag_is_one_line(self, flag):
    outcome = self.call(flag)
    self.assertEqual(outcome.code, exit_codes.ERROR)
    self.assertIn(flag.partition('=')[0] + ' must be', outcome.err)

  def test_the_figure_is_in_the_table(self):
    row = {
      'run': 'SSGD, seed 0', 'model': 'resnet20', 'step': 9, 'num_steps': 10,
      'images_per_second': 3000.0, 'loss': 0.5, 'test_accuracy': 0.9,
    }  # fmt: skip
    results = store.read(self.root)
    store.finish(self.root, results, gpu_benchmark.FIGURE, [row])
    self.assertIn('| 9 of 10 |', report.page(self.results(), []))

  def test_no_data_for_the_figure_is_one_line(self):
    self.assertEmpty(figure_runs.find(str(self.root), self.root))


PEAKS = {'float32': 2e12, 'bfloat16': 8e12, 'bandwidth': 1e12}


class ReportTest(absltest.TestCase):
  def test_shares_are_of_the_limits_of_the_type(self):
    case = Case(cases.RESNET, cases.VMAP, 8, 128, 'bfloat16', 16)
    found = {'step_seconds': 2.0, 'flops': 8e12, 'bytes_per_step': 1.5e12}
    self.assertEqual(report.shares(found, case, PEAKS), (0.5, 0.75))
    del found['bytes_per_step']
    self.assertEqual(report.shares(found, case, PEAKS), (0.5, None))

  def test_layouts_count_convolutions_of_cudnn(self):
    line = (
      '%c = custom-call(%a, %b), window={size=3x3}, '
      'dim_labels=b01f_01io->b01f, feature_group_count=8, '
      'custom_call_target="__cudnn$convForward"\n'
    )
    self.assertEqual(
      timing.layouts(line * 2), {'b01f_01io->b01f feature_group_count=8': 2}
    )


class PackedTest(absltest.TestCase):
  def test_packed_images_are_loaded_without_the_data_set(self):
    images = np.arange(20 * 256 * 3, dtype=np.uint32).reshape(20, 16, 16, 3)
    split = {
      'image': (images % 251).astype(np.uint8),
      'label': np.arange(20, dtype=np.int32) % 10,
    }
    dataset = pr.data.Dataset('cifar10', split, split, 10)
    with tempfile.TemporaryDirectory() as root:
      path = pathlib.Path(root) / small_images.PACKED
      with mock.patch.object(small_images, 'load', lambda _: dataset):
        small_images.pack(None, path)
      found = small_images.load(root)
      np.testing.assert_array_equal(found.train['image'], split['image'])
      np.testing.assert_array_equal(found.test['label'], split['label'])
      runs = figure_runs.find(root, pathlib.Path(root))
      self.assertEqual(runs[0].num_steps, 58_500)
      writing.write_text(path, 'no archive')
      with self.assertRaisesRegex(ValueError, 'is damaged'):
        small_images.load(root)


if __name__ == '__main__':
  absltest.main()
