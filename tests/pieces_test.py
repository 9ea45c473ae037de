"""Tests of long targets: runs, order, budget, claims and figures."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments import reproduce
from experiments.gpu import figure_runs
from experiments.hosts import cases
from experiments.papers import (
  keeping,
  kept_curves,
  pieces,
  quantities,
  results_page,
  t01_length,
  t01_long,
)
from experiments.papers.headline import (
  curves,
  host_times,
  judging,
  page,
  small_images,
  table,
)
from experiments.papers.headline import (
  setting as runs,
)
from experiments.papers.t01_pr_sgd import runs as pr_sgd_runs
from experiments.papers.target import Setting
from experiments.running.execution import experiment, finite
from experiments.running.process import budgets, exit_codes, signals
from experiments.running.records import json_files, records, writing
import prsgd_jax as pr
from tests import binaries, looks

LONG = [
  name
  for name, target in reproduce.all_targets().items()
  if 'long' in target.scales
]
TIMES = host_times.HostTimes(0.5, 2.0, 1e8, 4)


def made_curve(*, accuracy=0.9, loss=0.1, slow=1.0, epochs=300, period=1):
  """Return a curve that falls to a loss, `slow` times later than SSGD."""
  share = np.linspace(0.05, 1, 20)
  falls = 1 - np.minimum(share / slow, 1)
  steps = 195.0 * epochs * share
  return {
    'step': steps.tolist(),
    'epoch': (epochs * share).tolist(),
    'train_loss': (loss + falls).tolist(),
    'train_loss_mean_statistics': (loss + 2 * falls).tolist(),
    'test_accuracy': (accuracy - falls / 2).tolist(),
    'test_accuracy_mean_statistics': (accuracy - falls).tolist(),
    'consensus_distance': [0.0 if period == 1 else 0.5] * 20,
    'rounds': (steps // period).tolist(),
    'bytes_sent': (1e6 * steps // period).tolist(),
    'modeled_seconds': (0.01 * steps + 0.005 * (steps // period)).tolist(),
  }


def made_curves(**changed):
  """Return all curves with two seeds; some differ from SSGD."""
  found = {}
  for label, (_, options) in runs.CURVES.items():
    period = options.get('period', 1 if label == runs.SSGD else 58500)
    own = made_curve(period=period, **changed.get(label, {}))
    found[label] = {'0': own, '1': own}
  return found


def as_kept(data):
  return json.loads(writing.to_json(data))


class PiecesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def setting(self, scale='long', name='t01_long'):
    return Setting(scale, binaries.digits_dir(), self.root / f'{name}-{scale}')

  def test_all_targets_together_begin_with_what_shows_most(self):
    targets = reproduce.all_targets()
    found = pieces.in_order(
      piece
      for name in LONG
      for piece in targets[name].pieces(self.setting(name=name))
    )
    shown = [(p.workdir.parent.name, p.name) for p in found]
    self.assertEqual(
      shown[:5],
      [
        ('t01_length-long', 'SSGD, seed 0'),
        ('t01_length-long', 'I = 32, seed 0'),
        ('t01_length-long', 'SSGD, seed 0'),
        ('t01_length-long', 'I = 32, seed 0'),
        ('t01_length-long', 'SSGD, seed 0'),
      ],
    )
    self.assertLen({p.workdir for p in found}, len(found))
    steps = [195 * epochs for epochs in (75, 75, 20, 20, 40, 40)]
    self.assertEqual([p.num_steps for p in found[:6]], steps)
    longest = [p for p in found if p.num_steps == 58_500]
    self.assertEqual(
      [p.name for p in longest[:3]],
      ['SSGD, seed 0', 'I = 32, seed 0', 'I = 4, seed 0'],
    )
    self.assertLess(found.index(longest[6]), 29)

  def test_full_setting_runs_a_seed_after_the_other(self):
    found = pieces.in_order(pr_sgd_runs.pieces(self.setting('full')))
    names = [piece.name for piece in found]
    self.assertEqual(names[:3], ['SSGD, seed 0', 'I = 32, seed 0',
                                 'I = 4, seed 0'])  # fmt: skip
    self.assertEqual(names[6], 'SSGD, seed 1')
    self.assertLen(found, 18)
    self.assertEqual(found[0].num_steps, 58_594)

  def test_a_piece_stops_resumes_and_is_judged(self):
    results = self.root / 'results'
    setting = self.setting('test')._replace(results=results)
    chosen = t01_long.pieces(setting)[:2]
    target = t01_long.TARGET._replace(
      measure=lambda setting: t01_long.judged(chosen, 'tiny'),
    )
    hours, unknown = pieces.hours_left(chosen)
    self.assertEqual((hours, unknown), (0, 2))
    finished = []

    def train(left, requested=None):
      with mock.patch.object(signals, 'requested', lambda: requested):
        return pieces.run_all(
          chosen, binaries.digits_dir(), left, finished.append
        )

    with binaries.compiled_once():
      self.assertFalse(train(lambda: budgets.LEAST / 2))
      self.assertEmpty(finished)
      with self.assertRaises(signals.Stopped):
        train(lambda: 1e3, requested=10)
      self.assertTrue(train(lambda: 1e3))
      self.assertEqual([p.label for p in finished], ['SSGD', 'I = 32'])
      self.assertTrue(train(lambda: 1e3))  # reads, and trains nothing
    self.assertLen(finished, 2)
    self.check_kept(target._replace(pieces=lambda setting: chosen))
    self.assertEqual(pieces.hours_left(chosen), (0, 0))
    self.assertIn('2 of 2 pieces finished', pieces.status(chosen))
    rows = figure_runs.summary(chosen)
    self.assertEqual([row['step'] for row in rows], [4, 4])
    self.assertGreater(rows[0]['images_per_second'], 0)
    outcome = target.measure(self.setting('test'))
    figure = keeping.make_figure(target, as_kept(outcome.data))
    self.assertEqual(looks.faults(figure), [])
    self.assertLen(outcome.claims, 3)
    (first, *_) = records.read_records(chosen[0].workdir)
    self.assertNotIn('train_loss', first)
    last = records.read_last_record(chosen[0].workdir)
    # Equal, because an MLP has no batch statistics.
    self.assertEqual(
      last['test_accuracy'], last['test_accuracy_mean_statistics']
    )

  def check_kept(self, target):
    """Assert that the program judges finished pieces, and saves them once."""
    results = self.root / 'results'
    with (
      mock.patch.object(reproduce, 'all_targets', lambda: {'t01_long': target}),
      mock.patch.object(reproduce, 'RESULTS', results),
      mock.patch.object(reproduce.results_page, 'write'),
    ):
      outcome = binaries.call(reproduce, '--scale=long')
      self.assertEqual(outcome.code, 0, outcome.err)
      self.assertIn('yes: Training loss', outcome.out)
      kept = results / 't01_long-long.json'
      self.assertEqual(json.loads(kept.read_text())['seeds'], [0])
      self.assertTrue(kept.with_suffix('.png').exists())
      self.check_program_keeps(target.pieces(None))
      again = binaries.call(reproduce, '--scale=long')
      self.assertNotIn('Training loss', again.out)
      status = binaries.call(reproduce, '--scale=long', '--status')
    self.assertIn('2 of 2 pieces finished', status.out)

  def check_program_keeps(self, chosen):
    """Assert that the program kept the curves, and keeps one it finishes."""
    for piece in chosen:
      self.assertTrue(piece.kept.exists())

    def finish(found, data_dir, left, on_finished, *, again):
      del data_dir, left, again
      found[0].kept.unlink()
      on_finished(found[0])
      return True

    with mock.patch.object(pieces, 'run_all', finish):
      outcome = binaries.call(reproduce, '--scale=long')
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertTrue(chosen[0].kept.exists())

  def test_a_kept_curve_is_not_trained_on_another_machine(self):
    results = self.root / 'results'
    here = self.setting('test')._replace(results=results)
    chosen = t01_long.pieces(here)[:2]
    with binaries.compiled_once():
      pieces.run_all(
        chosen, binaries.digits_dir(), lambda: 1e3, lambda piece: None
      )
    own, _ = curves.read(chosen)
    self.check_kept_once(chosen[0], own['SSGD']['0'])
    elsewhere = here._replace(workdir=self.root / 'other' / 't01_long-test')
    others = t01_long.pieces(elsewhere)[:2]
    found, missing = curves.read(others)
    self.assertEqual(found, {'SSGD': own['SSGD']})
    self.assertEqual(missing, ['I = 32, seed 0'])
    self.assertAlmostEqual(
      curves.hours(others), curves.hours(chosen[:1]), places=4
    )
    self.assertIn('1 of 2 pieces finished', pieces.status(others))
    trained = []
    with mock.patch.object(
      pieces, 'train', lambda piece, *_, progress: trained.append(piece.label)
    ):
      for again in (False, True):
        pieces.run_all(others, None, lambda: 1e3, lambda _: None, again=again)
    self.assertEqual(trained, ['I = 32', 'SSGD', 'I = 32'])
    chosen[0].kept.write_text('{"piece": "SSGD"}')
    with self.assertRaisesRegex(json_files.DamagedFile, 'has no seconds'):
      pieces.progress_of(others[0])

  def check_kept_once(self, piece, wanted):
    """Assert that a curve is kept once, and is only replaced if told so."""
    curves.keep(piece)
    kept = kept_curves.read(piece.kept)
    self.assertEqual(kept.curve, wanted)
    self.assertEqual(kept.made_by['commit'], records.commit())
    other = kept._replace(seconds=1.0, curve={'step': [1.0]})
    kept_curves.write(piece.kept, 'other', other)
    curves.keep(piece)
    self.assertEqual(kept_curves.read(piece.kept), other)
    curves.keep(piece, again=True)
    self.assertEqual(kept_curves.read(piece.kept).curve, wanted)

  def test_fewer_curves_do_not_replace_results(self):
    found = made_curves()
    whole = t01_long.outcome(found, ['a run'], 'made', 1.0, TIMES)
    results = self.root / 'results'
    kept = results / 't01_long-long.json'
    self.assertEqual(keeping.missing(kept), np.inf)
    keeping.save(t01_long.TARGET, whole, kept, scale='long', seconds=1)
    before = kept.read_bytes()
    part = {runs.SSGD: found[runs.SSGD], 'I = 4': found['I = 4']}
    fewer = t01_long.outcome(part, ['a run'] * 11, 'made', 1.0, TIMES)
    target = t01_long.TARGET._replace(
      measure=lambda setting: fewer, pieces=lambda setting: []
    )
    with (
      mock.patch.object(reproduce, 'all_targets', lambda: {'t01_long': target}),
      mock.patch.object(reproduce, 'RESULTS', results),
      mock.patch.object(reproduce.results_page, 'write'),
    ):
      outcome = binaries.call(reproduce, '--scale=long')
    self.assertIn('has more curves, so it is not replaced', outcome.out)
    self.assertEqual(kept.read_bytes(), before)

  def test_results_are_those_of_the_kept_curves(self):
    setting = self.setting()._replace(results=reproduce.RESULTS)
    outcome = t01_long.measure(setting)
    path = reproduce.RESULTS / 't01_long-long.json'
    self.assertTrue(keeping.holds(path, outcome))
    kept = set(reproduce.RESULTS.glob('*/*.json'))
    named = {
      piece.kept
      for name in LONG
      for piece in reproduce.all_targets()[name].pieces(
        self.setting(name=name)._replace(results=reproduce.RESULTS)
      )
    }
    self.assertContainsSubset(kept, named)

  def test_a_diverged_piece_does_not_stop_the_others(self):
    chosen = t01_long.pieces(self.setting('test'))[:2]
    tried = []

    def train(piece, data_dir, *, progress):
      del data_dir, progress
      tried.append(piece.label)
      raise finite.NonFinite('the loss is NaN', 3, (0,))

    with mock.patch.object(pieces, 'train', train):
      self.assertTrue(pieces.run_all(chosen, None, lambda: 1e3, self.fail))
    self.assertEqual(tried, ['SSGD', 'I = 32'])
    chosen[0].workdir.mkdir(parents=True)
    records.write_failure(
      chosen[0].workdir, {'step': 3, 'failed': 'the loss is NaN'}
    )
    self.assertIn('diverged', pieces.status(chosen))

  @parameterized.parameters(*LONG)
  def test_every_run_fits_together(self, name):
    """Only one of each network, because the others differ by the algorithm."""
    target = reproduce.all_targets()[name]
    piece = target.pieces(self.setting(name=name))[0]
    size = 16 if 'blocks_per_stage' in str(piece.config.model_options) else 32
    images = np.zeros((256, size, size, 3), np.uint8)
    split = {'image': images, 'label': np.arange(256, dtype=np.int32) % 10}
    dataset = pr.data.Dataset('cifar10', split, split, 10)
    parts = experiment.assemble(
      piece.config, dataset, piece.num_devices, piece.network
    )
    adapted = piece.adapt(parts, dataset)
    self.assertTrue(adapted.reestimate)
    self.assertIsNotNone(adapted.measure)
    self.assertEqual(
      adapted.description.get('crop_padding'), 2 if size == 16 else None
    )
    piece.intervals.check()


class JudgingTest(parameterized.TestCase):
  def verdicts(self, found):
    outcome = t01_long.outcome(found, [], 'made', 1.0, TIMES)
    return {claim.text[:20]: claim.verdict for claim in outcome.claims}

  def test_relative_steps_are_a_mean_over_losses(self):
    slow = made_curve(slow=1.5, epochs=300)
    self.assertAlmostEqual(
      curves.relative(slow, made_curve(), 'step'), 1.5, places=6
    )
    # Two of the six losses are reached twice as late.
    noisy = made_curve()
    late = {**noisy, 'step': [100, 200, 300, 400, 1000, 1200, *[1e4] * 14]}
    least = {**noisy, 'step': [100, 200, 300, 400, 500, 600, *[1e4] * 14]}
    self.assertAlmostEqual(curves.relative(late, least, 'step'), 2 ** (2 / 6))

  def test_a_drop_of_the_rate_does_not_help(self):
    own, reference = made_curve(), made_curve()
    waits = np.where(np.array(own['epoch']) > 150, 0.1, 2.0)
    own['train_loss'] = waits.tolist()
    self.assertGreater(curves.relative(own, reference, 'step'), judging.STEPS)
    self.assertTrue(curves.reaches_late(own, reference))
    self.assertFalse(curves.reaches_late(reference, reference))
    own['train_loss'] = [2.0] * len(waits)
    self.assertFalse(curves.reaches_late(own, reference))

  def test_a_loss_that_is_reached_late_is_a_bound(self):
    waits = np.where(np.array(made_curve()['epoch']) > 150, 0.1, 2.0).tolist()
    found = made_curves(**{'I = 8': {}})
    for own in found['I = 8'].values():
      own['train_loss'] = waits
    outcome = t01_long.outcome(found, [], 'made', 1.0, TIMES)
    self.assertIn('drop of the rate only: I = 8. ', outcome.claims[0].note)
    shown = table.of_curves(outcome.data, ['I = 8', 'I = 16'])
    self.assertEqual([row.count('≥') for row in shown.splitlines()[2:]], [1, 0])

  def test_an_outcome_is_held_with_its_data_and_its_claims(self):
    found = made_curves(**{'I = 32': {'slow': 1.2}})
    outcome = t01_long.outcome(found, ['a run'], 'made', 1.0, TIMES)
    with tempfile.TemporaryDirectory() as root:
      path = pathlib.Path(root, 'kept.json')
      self.assertFalse(keeping.holds(path, outcome))
      with mock.patch.object(keeping, 'draw'):
        keeping.save(t01_long.TARGET, outcome, path, scale='long', seconds=1)
      self.assertTrue(keeping.holds(path, outcome))
      with mock.patch.object(judging, 'STEPS', 1.1):
        again = t01_long.outcome(found, ['a run'], 'made', 1.0, TIMES)
      self.assertFalse(keeping.holds(path, again))
      more = t01_long.outcome(found, [], 'made', 1.0, TIMES)
      self.assertFalse(keeping.holds(path, more))

  def test_equal_curves_are_flat_and_each_bar_can_be_missed(self):
    failed = {runs.ONE_SHOT: {'accuracy': 0.5}}
    good = self.verdicts(made_curves(**failed))
    self.assertEqual(good['Training loss agains'], 'yes')
    # The control must fail.
    equal = self.verdicts(made_curves())
    self.assertEqual(equal['Training loss agains'], 'partly')
    self.assertEqual(equal['One average at the e'], 'no')
    # The statistics cost accuracy after the drop, too.
    self.assertEqual(equal['The mean of the batc'], 'no')
    late = self.verdicts(made_curves(**failed, **{'I = 32': {'slow': 1.5}}))
    self.assertEqual(late['Training loss agains'], 'partly')
    worse = {m: {'accuracy': 0.894} for m in runs.MODERATE}
    self.assertEqual(
      self.verdicts(made_curves(**worse))['Training loss agains'], 'no'
    )
    self.assertEqual(
      self.verdicts(made_curves(**failed))['One average at the e'], 'yes'
    )

  def test_nothing_is_judged_without_ssgd(self):
    found = made_curves()
    del found[runs.SSGD], found[runs.AVERAGED]
    self.assertLen(judging.judge(found, TIMES, '', ['SSGD']), 1)
    self.assertEmpty(judging.judge({}, TIMES, '', []))

  def test_figures_are_readable(self):
    outcome = t01_long.outcome(
      made_curves(), ['SSGD, seed 2'], 'made', 1.0, TIMES
    )
    figure = keeping.make_figure(t01_long.TARGET, as_kept(outcome.data))
    self.assertEqual(looks.faults(figure), [])
    self.assertIn('SSGD, seed 2 is not', outcome.claims[0].note)
    lengths = {
      str(epochs): made_curves(**{'I = 32': {'accuracy': 0.9 - 0.5 / epochs}})
      for epochs in t01_length.LENGTHS
    }
    outcome = t01_length.outcome(lengths, [], 1.0)
    figure = keeping.make_figure(t01_length.TARGET, as_kept(outcome.data))
    self.assertEqual(looks.faults(figure), [])
    self.assertEqual([c.verdict for c in outcome.claims], ['partly'])
    (claim,) = outcome.claims
    self.assertLen(claim.measured, len(t01_length.LENGTHS))
    first = claim.measured['lost to SSGD after 20 epochs'].cases['I = 32']
    self.assertAlmostEqual(first.value, 100 * 0.5 / 20)
    self.assertLen(first.seeds, 2)
    del lengths['300'], lengths['150'], lengths['75']['I = 32']
    (claim,) = t01_length.outcome(lengths, ['a', 'b'], 1.0).claims
    self.assertEqual(claim.note, '2 runs are not finished yet.')
    self.assertIn('after 75 epochs', claim.sentence)
    self.assertEqual(claim.verdict, 'no')  # equal gaps, and no I = 32
    self.assertEmpty(t01_length.outcome({'20': lengths['20']}, [], 1).claims)

  @parameterized.parameters((0.86, 'yes'), (0.7, 'partly'))
  def test_every_longer_run_must_lose_less(self, middle, verdict):
    lengths = {'20': 0.8, '40': middle, '300': 0.89}
    found = {
      epochs: {
        label: own
        for label, own in made_curves(**{'I = 32': {'accuracy': x}}).items()
        if label in (runs.SSGD, 'I = 32')
      }
      for epochs, x in lengths.items()
    }
    (claim,) = t01_length.outcome(found, [], 1.0).claims
    self.assertEqual(claim.verdict, verdict)

  def test_table_shows_a_loss_that_is_never_reached(self):
    found = made_curves(**{runs.ONE_SHOT: {'loss': 2.0}})
    data = t01_long.outcome(found, [], 'made', 1.0, TIMES).data
    row = table.of_curves(data, [runs.ONE_SHOT]).splitlines()[-1]
    self.assertIn('| never', row)

  def test_page_has_the_figures_with_tables_and_sources(self):
    outcomes = [
      {
        'name': name,
        'scale': 'long',
        'title': name,
        'seconds': 5400.0,
        'machine': {'cpus': 2, 'device': 'cpu', 'jax': '0'},
        'commit': 'abc',
        **outcome._asdict(),
      }
      for name, outcome in {
        't01_long': t01_long.outcome(made_curves(), ['a'], 'made', 1.5, TIMES),
        't01_length': t01_length.outcome(
          {'20': made_curves(**{'I = 8': {'accuracy': 0.8}})}, [], 1.5
        ),
      }.items()
    ]
    text = ' '.join(page.format_page(outcomes).split())
    self.assertIn('reproduce/t01_long-long.png)', text)
    # 58,500 steps without and with averages: modeled, and measured on hosts.
    measured = 58500 * (TIMES.step + TIMES.round / 4) / 3600
    self.assertIn(
      '| PR-SGD, I = 4 | 2 | 90 (90 to 90) | 0.1 (0.1 to 0.1) | 1 (1 to 1) | '
      f'14625 | 14.62 | 0.1828 | {quantities.of_seeds([measured])} |',
      text,
    )
    self.assertIn(
      '--scale=long`: Seeds 0, 1 at most, 2 cpu cores, JAX 0, commit abc, 1.5 '
      'hours. Runs that are not finished yet: 1.',
      text,
    )
    self.assertIn('| PR-SGD, I = 8 | 10 (10 to 10) |', text)
    self.assertIn('Not run yet: `python -m experiments.reproduce --t', text)

  def test_page_is_of_the_saved_results(self):
    text = page.format_page(results_page.read(reproduce.RESULTS))
    self.assertEqual(page.PAGE.read_text(), text)

  def test_speedup_is_that_of_the_model(self):
    claim = next(
      c
      for c in t01_long.outcome(made_curves(), [], 'made', 1.0, TIMES).claims
      if judging.MODELED in c.measured
    )
    value = claim.measured[judging.MODELED].cases['I = 4'].value
    self.assertAlmostEqual(value, 0.015 / (0.01 + 0.005 / 4), places=3)

  def test_measured_times_of_a_step_and_a_round(self):
    own = {'step': [4.0, 8.0], 'rounds': [1.0, 2.0]}
    self.assertEqual(curves.host_seconds(own, TIMES), [4.0, 8.0])
    kept = host_times.read()
    self.assertEqual((kept.hosts, kept.bits_per_second), (8, 1e8))
    larger = host_times.read(cases.RESNET20)
    self.assertGreater(larger.step, kept.step)
    self.assertGreater(larger.round, kept.round)
    with self.assertRaisesRegex(ValueError, 'no measurement at 1 bits'):
      host_times.read(rate=1)

  def test_rounds_with_buffers_have_no_measured_time(self):
    outcome = t01_long.outcome(made_curves(), [], 'made', 1.0, TIMES)
    measured = outcome.claims[0].measured
    hours = next(x for name, x in measured.items() if 'measured' in name)
    self.assertEqual([*hours.cases], [*runs.TIMED])
    shown = table.of_curves(outcome.data, [runs.SSGD, runs.AVERAGED])
    cells = shown.splitlines()[-1].split('|')
    self.assertEqual(cells[-2].strip(), '')
    figure = keeping.make_figure(t01_long.TARGET, as_kept(outcome.data))
    drawn = [len(axis.lines) for axis in figure.axes[:3]]
    self.assertEqual(drawn, [len(runs.SHOWN), len(runs.SHOWN), len(runs.TIMED)])

  def test_timed_rounds_send_as_much_as_those_of_ssgd(self):
    kept = json.loads((reproduce.RESULTS / 't01_long-long.json').read_text())
    sent = {
      label: own['0']['bytes_sent'][-1] / own['0']['rounds'][-1]
      for label, own in kept['data']['curves'].items()
    }
    for label, of_round in sent.items():
      whole = 1 if label in runs.TIMED else 2
      self.assertAlmostEqual(of_round / sent[runs.SSGD], whole, 4, label)


class SmallImagesTest(absltest.TestCase):
  def test_pixels_are_means_of_squares(self):
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    small = small_images.halve(images)
    self.assertEqual((small.shape, small.dtype), ((2, 2, 2, 3), np.uint8))
    wanted = images[1, 2:, :2, 2].astype(float).mean()
    self.assertLessEqual(abs(small[1, 1, 0, 2] - wanted), 0.5)


class ProgramTest(absltest.TestCase):
  def test_status_lists_the_pieces_and_runs_nothing(self):
    with (
      tempfile.TemporaryDirectory() as root,
      mock.patch.object(reproduce, 'RESULTS', pathlib.Path(root)),
    ):
      outcome = binaries.call(
        reproduce, '--scale=long', '--status', f'--workdir={root}'
      )
      self.assertEqual(list(pathlib.Path(root).iterdir()), [])
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertIn('0 of 60 pieces finished', outcome.out)

  def test_a_spent_budget_ends_with_the_code_of_more_to_do(self):
    with (
      tempfile.TemporaryDirectory() as root,
      mock.patch.object(pieces, 'run_all', lambda *args, again: False),
      mock.patch.object(reproduce.results_page, 'write'),
    ):
      outcome = binaries.call(
        reproduce, '--scale=long', '--minutes=10', f'--workdir={root}'
      )
    self.assertEqual(outcome.code, exit_codes.STOPPED)
    self.assertIn('more to do; repeat the command', outcome.out)

  def test_the_cpu_scale_has_no_pieces(self):
    outcome = binaries.call(reproduce, '--status')
    self.assertEqual(outcome.code, exit_codes.ERROR)
    self.assertIn('--status requires --scale=long or', outcome.err)
    with (
      mock.patch.object(pieces, 'run_all') as run_all,
      mock.patch.object(reproduce, '_run'),
      mock.patch.object(reproduce.results_page, 'write'),
    ):
      outcome = binaries.call(reproduce, '--again', '--at_once=1')
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertEmpty(run_all.call_args.args[0])

  def test_too_few_minutes_are_one_line(self):
    outcome = binaries.call(reproduce, '--scale=long', '--minutes=0.5')
    self.assertEqual(outcome.code, exit_codes.ERROR)
    self.assertIn('--minutes must be >= 2, got 0.5', outcome.err)

  def test_a_budget_stops_as_a_signal_does(self):
    stopped = []
    with mock.patch.object(signals, 'stop', lambda *args: stopped.append(args)):
      with budgets.limited(0.01) as left:
        while not stopped:
          pass
      self.assertLess(left(), 0.01)
    self.assertEqual(stopped[0][1], '0.000166667 minutes are over')


if __name__ == '__main__':
  absltest.main()
