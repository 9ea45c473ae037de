"""Tests of the targets of `experiments/reproduce`, in one table."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments import costs, reproduce
from experiments.papers import (
  claims,
  keeping,
  results_page,
  t09_post_local,
  target,
)
from experiments.papers.target import Setting
from experiments.running.execution import experiment, runs
from experiments.running.flags import run_config, tasks
from experiments.running.process import exit_codes, jobs
from experiments.running.records import records, writing
from experiments.tools import drawing, figure_files
import prsgd_jax as pr
from prsgd_jax import ledger, models
from prsgd_jax.data.datasets import DatasetError
from tests import binaries, looks

# Without blocks: the ledger looks at each leaf of the model of each run, and
# all the blocks have been looked at by `models_test`.
SHALLOW = {
  'resnet18': functools.partial(models.ResNet18, blocks_per_stage=0),
  'resnet20': functools.partial(models.ResNet20, blocks_per_stage=0),
}


def without_images(name, data_dir):
  """Return a dataset of its real size, with black images."""
  del data_dir
  shape = costs.DATASETS[name]
  (kind,) = shape.batch

  def split(size):
    return {
      kind: np.zeros((size, *shape.batch[kind].shape[1:]), np.uint8),
      'label': (np.arange(size) % shape.num_classes).astype(np.int32),
    }

  return pr.data.Dataset(
    name, split(shape.num_examples), split(10_000), shape.num_classes
  )


def check_claims(test, outcome):
  """Assert that every rule fits its numbers and can be kept."""
  test.assertNotEmpty(outcome.claims)
  for claim in outcome.claims:
    kept = json.loads(writing.to_json(claims.to_json(claim)))
    test.assertIsNone(claims.check(kept), claim.text)
    test.assertTrue(claim.setting, claim.text)


TARGETS = reproduce.all_targets()
FULL = [name for name, target in TARGETS.items() if 'full' in target.scales]
KEPT = sorted(reproduce.RESULTS.glob('*.json'))


class TargetTest(parameterized.TestCase):
  @parameterized.parameters(*TARGETS)
  def test_is_named_as_its_module_and_names_its_paper(self, name):
    target = TARGETS[name]
    self.assertEqual(target.name, name)
    self.assertTrue(target.title)
    self.assertTrue(target.paper)
    self.assertTrue(target.scales)
    self.assertLessEqual(set(target.scales), {'cpu', 'long', 'full'})

  @parameterized.parameters(*FULL)
  def test_full_setting_starts_and_is_drawn(self, name):
    with tempfile.TemporaryDirectory() as root:
      setting = Setting('test', binaries.digits_dir(), pathlib.Path(root))
      try:
        outcome = TARGETS[name].measure(setting)
      except DatasetError as error:
        self.skipTest(str(error))
    data = json.loads(json.dumps(outcome.data))
    keeping.make_figure(TARGETS[name], data)
    check_claims(self, outcome)


class FullSettingTest(parameterized.TestCase):
  """The full settings, assembled but not trained."""

  def setUp(self):
    super().setUp()
    self.assembled, self.spent = [], {}
    assemble, known = experiment.assemble, {}

    def assemble_once(run, *args):
      """Assemble runs once that differ by seed or rate only."""
      alike = dataclasses.replace(run, seed=0, learning_rate=1.0)
      key = repr(alike)
      if key not in known:
        known[key] = assemble(run, *args)
      self.assembled.append(known[key])
      return known[key]

    for module, name, fake in (
      (experiment, 'assemble', assemble_once),
      (run_config, 'fingerprint', lambda data: ''),
      (target, 'load_dataset', without_images),
      (t09_post_local, 'load_dataset', without_images),
      (runs, 'hold', lambda workdir: contextlib.nullcontext()),
      (runs, 'open_workdir', lambda *args, **kwargs: None),
      (runs, 'execute', lambda *args, **kwargs: None),
      (records, 'read_records', lambda workdir: self.made_records()),
    ):
      self.enterContext(mock.patch.object(module, name, fake))
    self.enterContext(mock.patch.dict(tasks.MODELS, SHALLOW))

  def made_records(self):
    """Return two evaluations of the last run, as if it had been trained."""
    parts = self.assembled[-1]
    steps = (parts.plan.num_steps // 2, parts.plan.num_steps)
    if id(parts) not in self.spent:  # runs that fit together alike share it
      self.spent[id(parts)] = list(ledger.spent_at(parts.meter, steps))
    return [
      {
        'step': step, 'epoch': parts.epoch(spent.gradients), 'loss': 0.5,
        'rounds': spent.rounds, 'bytes_sent': spent.bytes_sent,
        'bytes_by_tier': {}, 'seconds': 1.0, 'consensus_distance': 0.0,
        'modeled_seconds': spent.seconds,
        'test_accuracy': 0.9, 'test_loss': 0.5,
      }
      for step, spent in zip(steps, self.spent[id(parts)])
    ]  # fmt: skip

  @parameterized.parameters(*FULL)
  def test_every_run_fits_together(self, name):
    setting = Setting('full', None, pathlib.Path('nowhere'))
    outcome = TARGETS[name].measure(setting)
    data = json.loads(json.dumps(outcome.data))
    figure = keeping.make_figure(TARGETS[name], data)
    self.assertEqual(looks.faults(figure), [])
    check_claims(self, outcome)
    for parts in self.assembled:
      self.assertNotEqual(parts.config.model, 'mlp')
      self.assertGreaterEqual(parts.plan.num_steps, 1000)


class SideBySideTest(parameterized.TestCase):
  def run_two(self, root, code):
    """Run two targets with processes that print and end with a code."""
    started = []

    def run_jobs(waiting, *, at_once, on_end, **settings):
      del settings
      self.assertEqual(at_once, 2)
      for job in waiting:
        job.log.parent.mkdir(parents=True)
        started.append(job.command()[2:])
        job.log.write_text(f'ran {job.name}\n')
        on_end(job, code)

    with (
      mock.patch.object(jobs, 'run_all', run_jobs),
      mock.patch.object(results_page, 'write'),
      mock.patch.object(reproduce, '_run', side_effect=AssertionError),
    ):
      names = '--targets=t07_heterogeneous,t10_topologies'
      flags = ('--again', f'--workdir={root}', '--notune_cpu')
      return started, binaries.call(reproduce, names, *flags)

  def test_each_target_is_a_process_that_runs_only_it(self):
    with tempfile.TemporaryDirectory() as root:
      started, outcome = self.run_two(root, 0)
      self.assertEqual(outcome.code, 0, outcome.err)
      # The longer one first.
      self.assertIn('ran t10_topologies\nran t07_heterogeneous', outcome.out)
      shared = (f'--workdir={root}', '--notune_cpu')
      for name, given in zip(('t10_topologies', 't07_heterogeneous'), started):
        self.assertContainsSubset((f'--targets={name}', *shared), given)
        # Otherwise the process would start processes, or do nothing.
        self.assertContainsSubset(('--at_once=1', '--again'), given)

  def test_a_failed_target_is_named_and_is_an_error(self):
    with tempfile.TemporaryDirectory() as root:
      _, outcome = self.run_two(root, 3)
      log = pathlib.Path(root, 't10_topologies-cpu', 'log.txt')
    self.assertEqual(outcome.code, exit_codes.ERROR)
    why = f't10_topologies ended with exit code 3; see {log}'
    self.assertIn(f'2 of 2 targets failed: {why}', outcome.err)


class KeptTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not KEPT:
      self.skipTest('no outcome is kept: python -m experiments.reproduce')

  def test_pictures_are_what_the_files_and_the_code_draw(self):
    for path in KEPT:
      with self.subTest(path.name):
        kept = json.loads(path.read_text())
        figure = keeping.make_figure(TARGETS[kept['name']], kept['data'])
        self.assertEqual(
          figure_files.digest(figure),
          figure_files.read_digest(path.with_suffix('.png')),
          'draw it again: python -m experiments.reproduce --redraw',
        )
        self.assertEqual(looks.faults(figure), [])
        self.assertLessEqual(figure.get_figwidth(), drawing.WIDTH)
    # Another color, because the digest must depend on the drawing.
    figure.axes[0].lines[0].set_color('#123456')
    self.assertNotEqual(
      figure_files.digest(figure),
      figure_files.read_digest(path.with_suffix('.png')),
    )

  def test_redraw_draws_what_is_kept_and_runs_nothing(self):
    name = 't06_time_varying'
    with tempfile.TemporaryDirectory() as root:
      results = pathlib.Path(root)
      for scale in ('cpu', 'full'):
        kept = reproduce.RESULTS / f'{name}-cpu.json'
        (results / f'{name}-{scale}.json').write_text(kept.read_text())
      with (
        mock.patch.object(reproduce, 'RESULTS', results),
        mock.patch.object(results_page, 'write'),
        mock.patch.object(reproduce, '_run', side_effect=AssertionError),
      ):
        outcome = binaries.call(reproduce, '--redraw', f'--targets={name}')
      self.assertEqual(outcome.code, 0, outcome.err)
      drawn = [path.name for path in results.glob('*.png')]
    self.assertEqual(drawn, [f'{name}-cpu.png'])  # the requested scale only

  def test_verdicts_are_those_of_the_kept_numbers_and_rules(self):
    for path in KEPT:
      for kept in json.loads(path.read_text())['claims']:
        with self.subTest(f'{path.name}: {kept["text"]}'):
          claim = claims.from_json(kept)
          self.assertEqual(claim.verdict, kept['verdict'])
          self.assertEqual(claims.to_json(claim), kept)
          self.assertTrue(claim.measured)
          self.assertTrue(claim.setting)

  def test_page_has_all_of_them(self):
    page = results_page.format_page(
      results_page.read(reproduce.RESULTS),
      pathlib.Path('results/reproduce'),
      TARGETS,
    )
    for path in KEPT:
      self.assertIn(f'results/reproduce/{path.stem}.png', page)
    self.assertEqual(results_page.PAGE.read_text(), page)

  def test_bars_do_not_end_the_cells_of_a_table(self):
    bars = 0
    for line in results_page.PAGE.read_text().splitlines():
      found = len(re.findall(r'(?<!\\)\|', line)) * line.startswith('|')
      self.assertIn(found, (bars, 0) if bars else range(13), line)
      bars = found

  def test_every_setting_is_kept_or_named_as_not_run(self):
    page = results_page.PAGE.read_text()
    done = {path.stem for path in KEPT}
    for name, one in TARGETS.items():
      for scale in one.scales:
        told = f'`python -m experiments.reproduce --targets={name} --scale='
        self.assertIn(f'{told}{scale}`', page)
      self.assertTrue('cpu' not in one.scales or f'{name}-cpu' in done)

  def test_numbers_are_of_a_commit_and_of_a_jax_that_sums(self):
    for path in KEPT:
      kept = json.loads(path.read_text())
      with self.subTest(path.name):
        self.assertRegex(kept['commit'], '^[0-9a-f]{7,}$')
        self.assertNotEqual(kept['machine']['jax'], '0.10.2')


if __name__ == '__main__':
  absltest.main()
