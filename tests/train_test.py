"""Tests of `experiments/train.py`, as a user calls it."""

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments import train
from experiments.running.execution import runs
from experiments.running.flags import tasks
from experiments.running.process import locks, signals
from experiments.running.records import records
from prsgd_jax import models
from prsgd_jax.engine import checkpoint_files, checkpoints
from tests import binaries

# A convolution, its batch statistics, and the readout.
SHALLOW = functools.partial(models.ResNet20, blocks_per_stage=0)
NARROW = functools.partial(models.Transformer, width=8, num_blocks=1)
SCRIPT = pathlib.Path(train.__file__)
OF_ALL = (
  '--num_devices=2', '--batch_size=8', '--log_every=10', '--eval_every=20',
  '--checkpoint_every=20', '--noprogress',
)  # fmt: skip
SMALL = ('--algorithm=pr_sgd', '--period=4', *OF_ALL)


def without_seconds(history):
  return [{k: v for k, v in r.items() if k != 'seconds'} for r in history]


def saved(workdir, step):
  """The arrays of a checkpoint, by name."""
  path = workdir / 'checkpoints' / str(step)
  return checkpoints.read_leaves(path, checkpoint_files.read_record(path))


class TrainTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(binaries.compiled_once())
    cls.made = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def copy(self, num_steps, workdir):
    """Copy a small run that the tests of this class share."""
    run = self.made / str(num_steps)
    if not run.exists():
      self.train(f'--num_steps={num_steps}', workdir=run)
    return shutil.copytree(run, self.root / workdir)

  def train(self, *args, workdir='run', small=SMALL):
    outcome = binaries.call(
      train, *small, f'--workdir={self.root / workdir}', *args
    )
    self.assertEqual(outcome.code, 0, outcome.err)
    return self.root / workdir

  def assert_same_run(self, one, other, step):
    self.assertEqual(
      without_seconds(records.read_records(one)),
      without_seconds(records.read_records(other)),
    )
    first, second = saved(one, step), saved(other, step)
    self.assertEqual(first.keys(), second.keys())
    for name, value in first.items():
      np.testing.assert_array_equal(value, second[name], name)

  def test_run_tells_all_of_itself(self):
    workdir = self.train('--num_steps=110', '--learning_rate=0.05')
    history = records.read_records(workdir)
    self.assertEqual([r['step'] for r in history], list(range(10, 120, 10)))
    last = history[-1]
    self.assertEqual(last['rounds'], 110 // 4)
    # 65 * 128 + 129 * 10 parameters of 4 bytes in a ring all-reduce of 8.
    payload = 4 * (65 * 128 + 129 * 10)
    self.assertEqual(last['bytes_sent'], 27 * 2 * 7 / 8 * payload)
    self.assertEqual(last['bytes_by_tier'], {'global': last['bytes_sent']})
    self.assertAlmostEqual(last['epoch'], 110 * 64 / 1437)
    self.assertEqual(last['learning_rate'], 0.05)
    self.assertLess(last['loss'], history[0]['loss'] / 2)
    self.assertGreater(last['test_accuracy'], 0.9)
    evaluated = [r['step'] for r in history if 'test_accuracy' in r]
    self.assertEqual(evaluated, [20, 40, 60, 80, 100, 110])
    summary = json.loads((workdir / 'summary.json').read_text())
    self.assertEqual(summary['test_accuracy'], last['test_accuracy'])
    self.assertNotEmpty(list((workdir / 'tensorboard').iterdir()))
    self.assertIn('pr_sgd', (workdir / 'config.json').read_text())
    # Of those of every 20 steps and the end, the newest three.
    kept = checkpoints.steps(workdir / 'checkpoints')
    self.assertEqual(kept, [80, 100, 110])

  def test_same_seed_is_the_same_run_and_another_seed_is_not(self):
    one = self.copy(20, 'one')
    with binaries.compiled_once():  # again, because nothing is known here
      two = self.train('--num_steps=20', workdir='two')
    other = self.train('--num_steps=20', '--seed=2', workdir='other')
    self.assert_same_run(one, two, 20)
    self.assertNotEqual(
      records.read_records(one)[-1]['loss'],
      records.read_records(other)[-1]['loss'],
    )

  def test_resumed_run_equals_the_uninterrupted_one(self):
    whole = self.copy(40, 'whole')
    parts = self.copy(20, 'parts')
    earlier = records.read_summary(parts)
    self.train('--num_steps=40', '--resume', workdir='parts')
    self.assert_same_run(whole, parts, 40)
    self.assertEqual(records.read_summary(parts)['step'], 40)
    kept = json.loads((parts / 'summary-20.json').read_text())
    self.assertEqual(kept, earlier)

  def test_streamed_run_resumes_within_an_epoch_and_is_the_resident_one(self):
    whole = self.copy(40, 'whole')
    # 20 steps of 64 examples are within the first epoch, of 1437.
    parts = self.train('--num_steps=20', '--stream', workdir='parts')
    self.train('--num_steps=40', '--resume', workdir='parts')
    history = records.read_records(parts)
    self.assertGreater(history[0]['data_wait'], 0)
    plain = [{**record, 'data_wait': 0.0} for record in history]
    self.assertEqual(
      without_seconds(plain), without_seconds(records.read_records(whole))
    )
    one, other = saved(whole, 40), saved(parts, 40)
    for name, value in one.items():
      np.testing.assert_array_equal(value, other[name], name)

  def test_resumed_run_of_many_features_equals_the_uninterrupted_one(self):
    args = (
      *OF_ALL, '--algorithm=slowmo', '--slow_momentum=0.5', '--when=doubling:3',
      '--local=sgp:one_peer_exponential', '--average_codec=feedback:top_k:0.1',
      '--buffers=average', '--optimizer=muon', '--learning_rate=0.01',
    )  # fmt: skip
    whole = self.train('--num_steps=40', workdir='whole', small=args)
    self.train('--num_steps=20', workdir='parts', small=args)
    parts = self.train('--num_steps=40', '--resume', workdir='parts', small=())
    self.assert_same_run(whole, parts, 40)
    # Codes and buffers at steps 2, 8 and 20, push-sum at each of the 40.
    last = records.read_records(parts)[-1]
    self.assertEqual(last['rounds'], 40 + 2 * 3)
    self.assertEqual(
      records.read_config(parts)['label'],
      'slowmo slow_momentum=0.5 when=doubling:3 '
      'local=sgp:one_peer_exponential average_codec=feedback:top_k:0.1 '
      'buffers=average',
    )

  def stopped(self, step, *args, **kwargs):
    """As `train`, with a signal during the dispatch that ends at a step."""
    reached = [0]
    dispatches = runs._dispatches

    def watched(*args):
      for first, stop in dispatches(*args):
        reached[0] = stop
        yield first, stop

    def requested():
      return signal.SIGTERM if reached[0] >= step else None

    with (
      mock.patch.object(runs, '_dispatches', watched),
      mock.patch.object(signals, 'requested', requested),
    ):
      workdir = self.root / 'stopped'
      outcome = binaries.call(train, f'--workdir={workdir}', *args)
    self.assertEqual(outcome.code, 75, outcome.err)
    self.assertEqual(checkpoints.latest_step(workdir / 'checkpoints'), step)
    return workdir

  @mock.patch.object(runs, 'MAX_STEPS_PER_DISPATCH', 4)
  def test_signaled_run_equals_the_uninterrupted_one(self):
    whole = self.train('--num_steps=30', workdir='whole')
    # In the middle of a record's steps, at a record, where it evaluates, and at
    # the end: records and evaluations that were not made are made later.
    workdir = self.stopped(4, *SMALL, '--num_steps=30')
    self.assertEmpty(records.read_records(workdir))
    for step, recorded in ((10, [10]), (20, [10]), (28, [10, 20])):
      self.stopped(step, '--resume')
      found = [r['step'] for r in records.read_records(workdir)]
      self.assertEqual(found, recorded)
    self.stopped(30, '--resume')
    self.assertIsNone(records.read_summary(workdir))
    self.train('--resume', workdir='stopped', small=())
    self.assert_same_run(whole, workdir, 30)
    self.assertEqual(records.read_summary(workdir)['step'], 30)

  def test_checkpoint_has_the_measures_of_its_record(self):
    workdir = self.copy(20, 'run')
    (last,) = (r for r in records.read_records(workdir) if r['step'] == 20)
    notes = checkpoints.read_notes(workdir / 'checkpoints', 20)
    names = ('loss', 'test_loss', 'test_accuracy', 'consensus_distance')
    for name in names:
      self.assertEqual(notes['measures'][name], last[name])
    self.assertNotIn('seconds', notes['measures'])

  def test_resumed_run_may_record_at_other_steps(self):
    whole = self.copy(40, 'whole')
    workdir = self.copy(20, 'run')
    self.train('--resume', '--num_steps=40', '--log_every=20', small=())
    one, other = (records.read_records(w) for w in (whole, workdir))
    self.assertEqual([r['step'] for r in other], [10, 20, 40])
    # Of means over 10 steps each, and over 20.
    mean = (one[2]['loss'] + one[3]['loss']) / 2
    self.assertAlmostEqual(other[2]['loss'], mean, places=5)
    self.assertAlmostEqual(other[2]['test_loss'], one[3]['test_loss'], places=5)

  def test_directory_in_use_is_one_line(self):
    with locks.hold(self.root / 'run'):
      for more in ((), ('--resume',)):
        (self.root / 'run' / 'config.json').write_text('{}')
        outcome = binaries.call(
          train, *SMALL, f'--workdir={self.root / "run"}', *more
        )
        self.assertEqual(outcome.code, 1)
        self.assertRegex(outcome.err, f'run is in use by process {os.getpid()}')
        self.assertEqual(outcome.err.count('\n'), 1)

  def test_new_runs_start_from_the_parameters_of_another(self):
    source = self.copy(20, 'source')
    flag = f'--init_from={source}'
    mean = self.train(
      '--algorithm=ssgd', '--num_replicas=2', '--num_steps=10', flag,
      workdir='mean', small=OF_ALL,
    )  # fmt: skip
    each = self.train(
      '--num_steps=10', flag, '--init_replicas=each', '--keep=all',
      workdir='each',
    )  # fmt: skip
    theirs = saved(source, 20)
    for name, value in saved(each, 0).items():
      if name.startswith('params'):
        np.testing.assert_array_equal(value, theirs[name], name)
        average = theirs[name].mean(axis=0, dtype=np.float32)
        for replica in saved(mean, 0)[name]:
          np.testing.assert_allclose(replica, average, rtol=1e-6, atol=1e-7)
    self.assertEqual(saved(mean, 0)['step'], 0)
    first = records.read_records(source)[0]['loss']
    self.assertLess(records.read_records(mean)[0]['loss'], first)
    # The source is not needed once the run has a checkpoint.
    source.rename(self.root / 'moved')
    self.train('--resume', '--num_steps=20', workdir='mean', small=())
    for pattern, more in (
      ('source has no checkpoint', (flag,)),
      ('needs the --num_replicas=8 of .*/20, got 4; use --init_replicas=mean',
       (f'--init_from={self.root / "moved"}', '--init_replicas=each')),
      (r'has params.Conv_0.bias: nothing, this run has float32\[8, 6\]; it is '
       'of another model',
       (f'--init_from={self.root / "moved"}', '--model=lenet')),
    ):  # fmt: skip
      outcome = binaries.call(
        train, *SMALL, '--num_replicas=4', f'--workdir={self.root / "new"}',
        *more,
      )  # fmt: skip
      self.assertEqual(outcome.code, 1)
      self.assertRegex(outcome.err, pattern)
      self.assertEqual(outcome.err.count('\n'), 1)

  def test_resumed_on_other_devices_is_the_same_to_float_tolerance(self):
    whole = self.copy(40, 'whole')
    self.copy(20, 'parts')
    parts = self.train(
      '--num_steps=40', '--resume', '--num_devices=4', workdir='parts'
    )
    first, second = saved(whole, 40), saved(parts, 40)
    for name, value in first.items():
      # 20 steps of float32 sums in another order.
      np.testing.assert_allclose(value, second[name], atol=2e-5, err_msg=name)

  def test_number_of_replicas_changes_when_resumed(self):
    workdir = self.copy(20, 'run')
    before = records.read_last_record(workdir)
    resumed = f'--workdir={workdir}', '--resume', '--noprogress'
    refused = binaries.call(train, *resumed, '--num_replicas=3')
    self.assertIn('num_devices must divide the 3 replicas', refused.err)
    outcome = binaries.call(
      train, *resumed, '--num_replicas=2', '--num_steps=40'
    )
    self.assertEqual(outcome.code, 0, outcome.err)
    self.assertIn('replicas: 8, 2 from step 20\n', outcome.out)
    self.assertIn('  replicas       8, 2 from step 20\n', outcome.out)
    after = records.read_last_record(workdir)
    self.assertEqual(after['num_replicas'], 2)
    # Half of the steps took 2 gradients, not 8; a mean sends P, not 7/4 P.
    self.assertAlmostEqual(after['epoch'], 1.25 * before['epoch'])
    self.assertEqual(after['rounds'], 2 * before['rounds'])
    sent = before['bytes_sent'] * (1 + 4 / 7)
    self.assertAlmostEqual(after['bytes_sent'] / sent, 1, places=9)
    self.assertGreater(after['modeled_seconds'], before['modeled_seconds'])
    sizes = records.read_summary(workdir)['sizes']
    self.assertEqual([x['num_replicas'] for x in sizes], [8, 2])
    # Resumed once more, it still counts what both spent.
    self.assertEqual(binaries.call(train, *resumed, '--num_steps=60').code, 0)
    last = records.read_last_record(workdir)
    sent += before['bytes_sent'] * 4 / 7
    self.assertAlmostEqual(last['bytes_sent'] / sent, 1, places=9)

  def test_finished_run_is_read_and_not_repeated(self):
    workdir = self.copy(20, 'run')
    before = (workdir / 'metrics.jsonl').read_bytes()
    self.train('--num_steps=20', '--resume')
    self.assertEqual((workdir / 'metrics.jsonl').read_bytes(), before)

  def test_killed_run_resumes_and_ends_as_the_uninterrupted_one(self):
    whole = self.train('--num_steps=200', workdir='whole')
    killed = self.root / 'killed'
    command = [
      sys.executable, SCRIPT, *SMALL, '--num_steps=200',
      f'--data_dir={binaries.digits_dir()}', f'--workdir={killed}',
    ]  # fmt: skip
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    process = subprocess.Popen(
      command, env=environment, stdout=subprocess.DEVNULL
    )
    directory = killed / 'checkpoints'
    while process.poll() is None and not (directory / '40').exists():
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    self.assertFalse((directory / '200').exists(), 'killed too late')
    programs = pathlib.Path(environment['JAX_COMPILATION_CACHE_DIR'])
    compiled = {path.name for path in programs.glob('*-cache')}
    subprocess.run([*command, '--resume'], env=environment, check=True)
    # All programs were there but the one that places a restored state.
    new = {path.name for path in programs.glob('*-cache')} - compiled
    self.assertLessEqual(len(new), 1)
    self.assert_same_run(whole, killed, 200)

  def test_loss_that_is_no_number_ends_the_run(self):
    workdir = self.root / 'run'
    outcome = binaries.call(
      train, '--algorithm=ssgd', '--num_steps=50', '--learning_rate=1e4',
      '--log_every=1', '--eval_every=50', '--checkpoint_every=1',
      '--noprogress', f'--workdir={workdir}',
    )  # fmt: skip
    self.assertEqual(outcome.code, 1)
    self.assertRegex(
      outcome.err,
      r'^(train.py: \d replicas are not finite at step \d+; the steps since '
      r'step \d+ run again to find the first\n)?'
      r'train.py: error: the (loss is|parameters are) not finite at step \d+ '
      r'on replica \d; try a lower --learning_rate; the last good checkpoint '
      r'is \S+/checkpoints/\d+\n$',
    )
    kept = int(outcome.err.rsplit('/', 1)[1])
    for name, value in saved(workdir, kept).items():
      if name.startswith('params'):
        self.assertTrue(np.isfinite(value).all(), name)

  # The losses tell them apart; the evaluation would be compiled for each.
  @mock.patch.object(runs, '_measure', lambda parts, state: {})
  def test_partitions_dtype_and_buffers_are_used(self):
    small = (
      '--algorithm=pr_sgd', '--period=2', '--num_steps=6', '--num_replicas=2',
      '--num_devices=1', '--batch_size=8', '--log_every=6', '--eval_every=6',
      '--checkpoint_every=6', '--noprogress',
    )  # fmt: skip
    losses = set()
    for args in (
      (),
      ('--partition=sharded',),
      ('--partition=dirichlet', '--dirichlet_alpha=0.1'),
      ('--dtype=bfloat16',),
      ('--buffers=average',),
      ('--buffers=reset',),
      ('--nesterov',),
      ('--weight_decay=0.1',),
      ('--augment',),
    ):
      workdir = self.train(*args, workdir=str(args), small=small)
      losses.add(records.read_records(workdir)[-1]['loss'])
    self.assertLen(losses, 9)

  @mock.patch.dict(tasks.MODELS, resnet20=SHALLOW)
  def test_batch_statistics_are_estimated_anew_at_evaluation(self):
    args = (
      '--algorithm=k_avg', '--period=2', '--model=resnet20', '--num_steps=2',
      '--batch_size=4', '--num_replicas=1', '--num_devices=1',
    )  # fmt: skip
    local = self.train(*args, workdir='local')
    again = self.train(*args, '--batch_stats=reestimate', workdir='again')
    one, other = (records.read_records(w)[-1] for w in (local, again))
    self.assertEqual(one['loss'], other['loss'])
    self.assertNotEqual(one['test_loss'], other['test_loss'])

  def test_language_model_is_trained_and_measured(self):
    workdir = self.train(
      '--dataset=text', '--model=transformer', '--optimizer=adamw',
      '--learning_rate=1e-2', '--num_steps=40', '--num_replicas=2',
      '--eval_every=40', '--checkpoint_every=40',
    )  # fmt: skip
    history = records.read_records(workdir)
    last = history[-1]
    # At the start log 65 = 4.17 nats; what knows the letters' frequencies has
    # 3.31 and gets the blanks right, 15 %.
    self.assertLess(last['loss'], 3.2)
    self.assertLess(last['test_loss'], 3.2)
    self.assertGreater(last['test_accuracy'], 0.18)
    self.assertAlmostEqual(last['epoch'], 40 * 16 / 15_685)
    payload = 4 * 112_577
    self.assertEqual(last['bytes_sent'], 10 * payload)

  @mock.patch.dict(tasks.MODELS, transformer=NARROW)
  def test_resumed_language_model_equals_the_uninterrupted_one(self):
    args = (
      '--dataset=text', '--model=transformer', '--optimizer=adam',
      '--learning_rate=1e-3', '--num_replicas=2', '--partition=sharded',
      '--dtype=bfloat16', '--buffers=average', '--num_devices=1',
      '--log_every=4', '--eval_every=8', '--checkpoint_every=8',
    )  # fmt: skip
    whole = self.train('--num_steps=16', *args, workdir='whole')
    self.train('--num_steps=8', *args, workdir='parts')
    parts = self.train('--num_steps=16', '--resume', *args, workdir='parts')
    self.assert_same_run(whole, parts, 16)


class BadInputTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(binaries.compiled_once())

  @parameterized.parameters(
    ('unknown --algorithm=foo; use one of ssgd, ', '--algorithm=foo'),
    ('dataset must be one of .*digits.*, got .foo',
     '--algorithm=ssgd --dataset=foo'),
    ('unknown --model=foo; use one of mlp', '--algorithm=ssgd --model=foo'),
    ('no preset .nowhere.flags.; experiments.presets has .*demo.flags',
     '--flagfile=nowhere.flags'),
    ('needs --period; for example --period=4', '--algorithm=pr_sgd'),
    ('--when replaces --period; give one of them',
     '--algorithm=pr_sgd --period=4 --when=doubling:4'),
    ('unknown --when=dubling:4; use one of every, doubling',
     '--algorithm=pr_sgd --when=dubling:4'),
    ("--when=linear_growth:4: missing a required argument: 'increment'",
     '--algorithm=pr_sgd --when=linear_growth:4'),
    ('--average_codec sends differences from x0, ',
     '--algorithm=pr_sgd --period=4 --average_codec=top_k:0.1'),
    ('--period does nothing for --algorithm=ssgd',
     '--algorithm=ssgd --period=4'),
    ('--batch_stats does nothing: --model=mlp has none',
     '--algorithm=pr_sgd --period=4 --batch_stats=average'),
    ('--augment requires images; leave it out with',
     '--algorithm=ssgd --dataset=text --model=transformer --augment'),
    ('--model=lstm does not read --dataset=text; use --model=transformer',
     '--algorithm=ssgd --dataset=text --model=lstm'),
    ('--momentum does nothing for --optimizer=adam; leave it out',
     '--algorithm=ssgd --optimizer=adam --momentum=0.9'),
    ('--optimizer=foo', '--optimizer=foo'),
    ('--buffers does nothing without --momentum',
     '--algorithm=pr_sgd --period=4 --buffers=reset --momentum=0'),
    ('--buffers does nothing for --algorithm=one_shot',
     '--algorithm=one_shot_averaging --buffers=reset'),
    ('num_devices must divide the 8 replicas, got 3; use one of .1, 2, 4, 8',
     '--algorithm=ssgd --num_devices=3'),
    ('group_size must divide the 8 replicas, got 3; use one of .1, 2, 4, 8',
     '--algorithm=hier_avg --local_period=2 --global_period=4 '
     '--group_size=3'),
    ('global_period must be a multiple of local_period, got 5 and 2',
     '--algorithm=hier_avg --local_period=2 --global_period=5 --group_size=2'),
    ('period must be an integer >= 1, got 0', '--algorithm=pr_sgd --period=0'),
    ('the batch of all replicas, 8 x 200 = 1600, is larger than the 1437',
     '--algorithm=ssgd --batch_size=200'),
    ('batch of 180 is larger than the shard',
     '--algorithm=ssgd --batch_size=180 --partition=sharded'),
    ('--partition=dirichlet and --dirichlet_alpha require each other',
     '--algorithm=ssgd --dirichlet_alpha=0.1'),
    ('unknown --mixing=foo; use one of ring, torus',
     '--algorithm=d_psgd --mixing=foo'),
    ('--eval_every must be a multiple >= 1 of --log_every=50, got 70',
     '--algorithm=ssgd --eval_every=70'),
    ('--log_every must be', '--algorithm=ssgd --log_every=0'),
    ('--num_replicas must be >= 1, got 0',
     '--algorithm=ssgd --num_replicas=0'),
    ('--num_steps must be an integer >= 1, got 0', '--num_steps=0'),
    ('--learning_rate must be > 0', '--algorithm=ssgd --learning_rate=0'),
    ("--learning_rate_drops expects numbers, got 'x'",
     '--algorithm=ssgd --learning_rate_drops=1,x'),
    ('mnist is not prepared in .*prepare_data.py mnist --data_dir',
     '--algorithm=ssgd --dataset=mnist'),
    ("--keep must be terms such as 3, all, every:1000, lowest:test_loss or "
     "highest:test_accuracy, joined by commas, got '0'",
     '--algorithm=ssgd --keep=0'),
    ('--keep=lowest:test_loss requires a --checkpoint_every that is a multiple '
     'of --eval_every=100, got 50',
     '--algorithm=ssgd --keep=lowest:test_loss --checkpoint_every=50'),
    ('--init_from=nowhere has no checkpoint; pass the directory of a run, '
     'of its checkpoints or of one checkpoint',
     '--algorithm=ssgd --init_from=nowhere'),
    (f'--init_from={__file__} has no checkpoint; pass the directory of a run, '
     'of its checkpoints or of one checkpoint',
     f'--algorithm=ssgd --init_from={__file__}'),
    ('--init_replicas does nothing without --init_from',
     '--algorithm=ssgd --init_replicas=each'),
    ('nowhere holds no run; leave out --resume',
     '--resume --workdir=nowhere'),
    ('--resume requires --workdir', '--algorithm=ssgd --resume'),
    ("expected --flag=value ..., got 'ssgd'", 'ssgd'),
    ("Unknown command line flag 'perod'", '--perod=4'),
    ('--period=x', '--period=x'),
    ('--partition=foo', '--partition=foo'),
  )  # fmt: skip
  def test_is_one_line_with_the_way_out(self, pattern, args):
    outcome = binaries.call(train, *args.split())
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^train.py: error: .*{pattern}')
    self.assertEqual(outcome.err.count('\n'), 1)
    self.assertEqual(outcome.out, '')

  def test_directory_of_another_run_is_left_alone(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    args = (*SMALL, '--num_steps=10', f'--workdir={root / "run"}')
    self.assertEqual(binaries.call(train, *args).code, 0)
    before = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    for pattern, more in (
      ('holds a run; pass --resume', ()),
      ('--period=4, this one has --period=8;', ('--resume', '--period=8')),
      (
        '--batch_size=8, this one has --batch_size=4;',
        ('--resume', '--batch_size=4'),
      ),
      ('holds no run', (f'--workdir={root}',)),
    ):
      outcome = binaries.call(train, *args, *more)
      self.assertEqual(outcome.code, 1)
      self.assertRegex(outcome.err, f'^train.py: error: .*{pattern}')
      self.assertEqual(outcome.err.count('\n'), 1)
    after = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    self.assertEqual(before, after)

  def test_damaged_checkpoint_is_one_line(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    args = (*SMALL, '--num_steps=10', f'--workdir={root / "run"}')
    binaries.call(train, *args)
    record = root / 'run' / 'checkpoints' / '10' / 'record.json'
    record.write_text(record.read_text()[:-10])
    outcome = binaries.call(train, *args, '--resume', '--num_steps=20')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, '^train.py: error: .*10 is damaged')
    self.assertEqual(outcome.err.count('\n'), 1)

  def test_from_the_shell_there_is_no_traceback(self):
    done = subprocess.run(
      [sys.executable, SCRIPT, '--algorithm=foo'],
      capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    self.assertEqual(done.returncode, 1)
    self.assertRegex(done.stderr, '^train.py: error: unknown --algorithm=foo')
    self.assertEqual(done.stderr.count('\n'), 1)


if __name__ == '__main__':
  absltest.main()
