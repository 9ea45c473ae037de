"""Tests of runs with the user's own algorithm, model and data."""

from unittest import mock

from absl import flags
from absl.testing import flagsaver, parameterized
import numpy as np

from experiments import compare, sweep, train
from experiments.running.flags import config, data, dotted, grids
from experiments.running.records import records
import prsgd_jax as pr
from tests import binaries, own_modules

del sweep  # whose flags grids read
SMALL = (
  '--num_steps=4', '--log_every=2', '--eval_every=4', '--checkpoint_every=4',
  '--num_replicas=2', '--batch_size=8', '--noprogress',
)  # fmt: skip
ALL_OWN = (
  '--algorithm=mine:soft', '--period=2', '--algorithm_options=strength=0.5',
  '--model=mine:Net', '--model_options=width=4,depth=2', '--dataset=mine:blobs',
)  # fmt: skip


class OwnPartsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = self.enterContext(own_modules.directory('mine'))

  def call(self, binary, *args):
    outcome = binaries.call(binary, *args)
    self.assertEqual(outcome.code, 0, outcome.err)
    return outcome

  def test_all_of_a_run_may_be_ones_own(self):
    self.call(train, *SMALL, *ALL_OWN, '--workdir=run')
    (_, last) = records.read_records(self.root / 'run')
    # 5 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3 parameters of 4 bytes, twice averaged
    # by two replicas, which send half of each twice.
    self.assertEqual(last['rounds'], 2)
    self.assertEqual(last['bytes_sent'], 2 * 59 * 4)
    self.assertIn('test_accuracy', last)
    saved = records.read_config(self.root / 'run')
    self.assertEqual(saved['label'], 'mine:soft period=2 strength=0.5')
    kept = {
      'algorithm': 'mine:soft', 'options': {'period': 2, 'strength': 0.5},
      'model': 'mine:Net', 'model_options': {'width': '4', 'depth': '2'},
      'dataset': 'mine:blobs',
    }  # fmt: skip
    self.assertEqual({n: saved['description'][n] for n in kept}, kept)
    for more, pattern in (
      ('--algorithm_options=strength=1', 'strength'),
      ('--model_options=width=8', 'model_options'),
      ('--model=mlp', 'model'),
    ):
      args = [a for a in ALL_OWN if not a.startswith(more.split('=')[0] + '=')]
      if more == '--model=mlp':
        args = [a for a in args if not a.startswith('--model_options')]
      outcome = binaries.call(
        train, *SMALL, *args, more, '--workdir=run', '--resume'
      )
      self.assertEqual(outcome.code, 1)
      self.assertRegex(outcome.err, f'^train.py: error: .*{pattern}')

  def test_loss_may_be_ones_own(self):
    self.call(
      train, *SMALL, '--algorithm=k_avg', '--period=2', '--workdir=run',
      '--dataset=mine:line', '--model=mine:squares', '--momentum=0',
    )  # fmt: skip
    (_, last) = records.read_records(self.root / 'run')
    self.assertNotIn('test_accuracy', last)
    self.assertLess(last['test_loss'], 14)  # that of zeros, 1 + 4 + 9

  def test_compare_and_sweep_have_them(self):
    outcome = self.call(
      compare, *SMALL, '--dataset=mine:blobs', '--model=mine:Net',
      '--run=mine:soft,period=2,strength=0.5', '--run=local_sgd,period=2',
      '--workdir=three',
    )  # fmt: skip
    self.assertRegex(outcome.out, r'mine:soft period=2 strength=0.5 +4 ')
    self.assertRegex(outcome.out, r'k_avg period=2 +4 ')
    self.enterContext(flagsaver.flagsaver())
    for flag in flags.FLAGS:
      flags.FLAGS[flag].present = 0
    flags.FLAGS(['sweep.py', '--dataset=mine:blobs', '--model=mine:Net'])
    (one, two) = grids.points(
      ['mine:soft,strength=0.5'], ['period=2,4'], flags.FLAGS
    )
    self.assertEqual(one.config.options, {'strength': 0.5, 'period': 2})
    (*own, other) = grids.points(
      ['mine:soft,period=2', 'ssgd'], ['strength=0.5,1'], flags.FLAGS
    )
    options = [{'period': 2, 'strength': strength} for strength in (0.5, 1)]
    self.assertEqual([point.config.options for point in own], options)
    self.assertEqual((other.config.options, other.values['strength']), ({}, ''))
    self.assertEqual(own[0].slug(), own[0].config.slug())
    with self.assertRaisesRegex(ValueError, "'strength' is not a setting"):
      grids.points(['ssgd'], ['strength=0.5,1'], flags.FLAGS)
    command = grids.command(two)
    self.assertIn('--algorithm=mine:soft', command)
    self.assertIn('--algorithm_options=strength=0.5,period=4', command)
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS:
      flags.FLAGS[flag].present = 0
    flags.FLAGS(['train.py', *command])
    again = config.from_flags(flags.FLAGS, algorithm=flags.FLAGS.algorithm)
    self.assertEqual(again, two.config)

  @parameterized.parameters(
    (': no module nowhere in ', '--algorithm=nowhere:soft'),
    ('module mine has no sof; did you mean soft?', '--algorithm=mine:sof'),
    ('expected a module, not a file; write --algorithm=mine:soft',
     '--algorithm=./mine.py:soft'),
    ('expected MODULE:NAME', '--algorithm=mine:'),
    ('importing mine_slip raised ZeroDivisionError at mine_slip.py:2: ',
     '--algorithm=mine_slip:f'),
    ('importing mine_syntax raised SyntaxError: .*mine_syntax.py, line 1',
     '--algorithm=mine_syntax:f'),
    ('importing mine_needs raised ModuleNotFoundError at mine_needs.py:1: No '
     "module named 'no_such_thing'", '--algorithm=mine_needs:f'),
    ('mine:number is int; expected a function', '--algorithm=mine:number'),
    ('mine:broken.* raised AttributeError at mine.py:.*undefined',
     '--algorithm=mine:broken'),
    ('gave GradientTransformation.*; expected an algorithm, such as',
     '--algorithm=mine:no_algorithm --period=2'),
    ('mine:no_average needs a default for average',
     '--algorithm=mine:no_average'),
    ("flag 'strength'; pass an argument of your own algorithm as "
     '--algorithm_options=strength=VALUE',
     '--algorithm=mine:soft --period=2 --strength=0.5'),
    ('mine:soft needs --period; for example --period=4',
     '--algorithm=mine:soft'),
    ('needs when_asked; for example --algorithm_options=when_asked=4',
     '--algorithm=mine:typed'),
    ("strength must be float, got 'much'",
     '--algorithm=mine:soft --period=2 --algorithm_options=strength=much'),
    ('has no strenth; did you mean strength?',
     '--algorithm=mine:soft --period=2 --algorithm_options=strenth=1'),
    ("expected NAME=VALUE,NAME=VALUE, got 'strength'",
     '--algorithm=mine:soft --period=2 --algorithm_options=strength'),
    ('period is already given by --period',
     '--algorithm=mine:soft --period=2 --algorithm_options=period=2'),
    ('--threshold does nothing for --algorithm=mine:soft',
     '--algorithm=mine:soft --period=2 --threshold=2'),
    ('table is dict, which no text gives',
     '--algorithm=mine:odd --algorithm_options=table=1'),
    ('--algorithm_options does nothing for --algorithm=k_avg, whose options '
     'are flags; write --period=4',
     '--algorithm=k_avg --algorithm_options=period=4'),
    ('mine:number is int; expected a flax', '--model=mine:number'),
    ('mine:Net has no widht; did you mean width?',
     '--model=mine:Net --model_options=widht=2'),
    ("width must be int, got '2.5'",
     '--model=mine:Net --model_options=width=2.5'),
    ('mine:Wrong must return logits .1, 10. for one example of '
     r'--dataset=digits, got .1, 2.', '--model=mine:Wrong'),
    ('raised TypeError at mine.py:.*', '--model=mine:Broken'),
    ('Constant has no parameters to train', '--model=mine:Constant'),
    ('mine:leaves raised SystemExit at mine.py:', '--dataset=mine:leaves'),
    ('label must be int.n., got int32.n, 1.; take the argmax',
     '--dataset=mine:columns --model=mine:Net'),
    ('--dtype does nothing: --model=mine:Net', '--model=mine:Net '
     '--dtype=bfloat16'),
    ('--label_smoothing does nothing: --model=mine:squares is a Task',
     '--model=mine:squares --dataset=mine:line --label_smoothing=0.1 '
     '--batch_size=8'),
    ('raised KeyError at mine.py:.*', '--model=mine:squares'),
    ('loss_fn must return .loss, .model_state, metrics..',
     '--model=mine:no_task --dataset=mine:line'),
    ('raised RuntimeError at mine.py:.* a bad batch',
     '--model=mine:breaks_in_training --dataset=mine:line --num_replicas=2 '
     '--batch_size=8'),
    ('mine:no_start: init must return .params, model_state., .*float32.3.',
     '--model=mine:no_start --dataset=mine:line'),
    ('mine:no_eval: eval_fn must be a function, got None',
     '--model=mine:no_eval --dataset=mine:line'),
    ('a parameter must be a float, got int32.3. in params',
     '--model=mine:counts --dataset=mine:line --num_replicas=2 --batch_size=8'),
    ('mine:number gave int; expected prsgd_jax.data.Dataset',
     '--dataset=mine:number'),
    ('train must be a dict of arrays of one length >= 1, got',
     '--dataset=mine:uneven'),
    ('label must be integers in 0 .. num_classes - 1 = 1, got int32 in 0 .. 2',
     '--dataset=mine:mislabeled'),
    ('--model=mlp does not read --dataset=mine:line, whose arrays are x, y; '
     'they must be image and label', '--dataset=mine:line'),
    ('--model=transformer does not read --dataset=mine:blobs.*use --model=mlp',
     '--dataset=mine:blobs --model=transformer'),
    ('--augment requires images .n, height', '--dataset=mine:blobs --augment'),
    ('--stream_processes does nothing without --stream',
     '--stream_processes=1'),
    ('--partition=dirichlet needs the labels .* leave out --stream',
     '--stream --partition=dirichlet --dirichlet_alpha=1'),
  )  # fmt: skip
  def test_a_slip_is_one_line(self, pattern, args):
    if '--algorithm' not in args:
      args += ' --algorithm=ssgd'
    outcome = binaries.call(train, *args.split(), '--noprogress')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^train.py: error: .*{pattern}')
    self.assertEqual(outcome.err.count('\n'), 1)

  def test_ones_own_source_is_streamed(self):
    run = '--algorithm=ssgd', '--model=mine:Net', *SMALL
    for dataset, more in (('blobs', ()), ('read', ('--stream',))):
      self.call(
        train, *run, f'--dataset=mine:{dataset}', f'--workdir={dataset}', *more
      )
    one, other = (
      records.read_records(self.root / name)[-1] for name in ('blobs', 'read')
    )
    # The pixels are floats, whose mean is that of other examples.
    self.assertAlmostEqual(one['loss'], other['loss'], places=4)
    run = [arg for arg in run if not arg.startswith('--num_steps')]
    run += '--dataset=mine:unreadable', '--num_steps=20', '--workdir=bad'
    outcome = binaries.call(train, *run)
    self.assertRegex(
      outcome.err, 'train must be a dict .*, got Read; .*--stream'
    )
    outcome = binaries.call(train, *run, '--stream')
    self.assertRegex(outcome.err, 'train.py: error: .*example 17 of the source')
    self.assertEqual((outcome.code, outcome.err.count('\n')), (1, 1))

  def load(self, changes, num_classes=3, model='mlp'):
    split = {'image': np.ones((4, 2)), 'label': [0, 1, 2, 1], **changes}
    dataset = pr.data.Dataset('mine', split, dict(split), num_classes)
    run = mock.Mock(dataset='mine:data', model=model, stream=False)
    with mock.patch.object(dotted, 'load', return_value=dataset):
      return data.load(run, None)

  @parameterized.parameters(
    ('image must be an array of numbers, got object',
     {'image': np.ones((4, 2), object)}),
    ('name must be an array of numbers, got <U1', {'name': list('abcd')}),
    ('image must be an array of numbers, got list: ',
     {'image': [[1], [2, 3], [4], [5]]}),
    ('image must be of finite real numbers',
     {'image': [[1], [2], [3], [np.nan]]}),
    ('image must be of finite real numbers', {'image': np.ones((4, 2)) * 1j}),
    ('image must be in float32, got 1e.300 .. 1e.300',
     {'image': np.full((4, 2), 1e300)}),
    ('time must be in int32, got 0 .. 4294967296',
     {'time': [0, 1, 2, 2**32]}),
    ('image must be .n, ..., channels., got float64', {'image': np.ones(4)}),
    ('label must be int.n., got int64.4, 3.; take the argmax of one-hot labels',
     {'label': np.eye(4, 3, dtype=int)}),
    ('label must be integers in 0 .. num_classes - 1 = 2, got int64 in 1 .. 3',
     {'label': [1, 2, 3, 1]}),
    ('label must be integers .* got float64', {'label': np.ones(4)}),
    ('num_classes must be an integer, got None', {}, None),
    ('num_classes must be an integer, got 3.0', {}, 3.0),
    (r'text must be int.n, length . 1., got int64.4.', {'text': [0, 1, 2, 1]}),
  )  # fmt: skip
  def test_a_slip_in_data_is_named(self, pattern, changes, *num_classes):
    with self.assertRaisesRegex(ValueError, f'^--dataset=mine:data.*{pattern}'):
      self.load(changes, *num_classes)

  def test_lists_are_data_and_a_task_may_have_any_labels(self):
    found = self.load({'image': [[1.5], [2], [3], [4]]})
    np.testing.assert_array_equal(found.train['image'][:2], [[1.5], [2]])
    one_hot = np.eye(4, 3)
    found = self.load({'label': one_hot}, model='mine:task')
    np.testing.assert_array_equal(found.test['label'], one_hot)

  def test_text_of_ones_own(self):
    text = 'ab\u00e9\U0001f600' * 100
    (self.root / 'mine.txt').write_text(text, encoding='utf-8')
    found = data.read_text(self.root / 'mine.txt', 4)
    self.assertEqual(found.num_classes, 4)
    # 360 characters in pieces of 4 predictions, then the last tenth.
    self.assertEqual(found.train['text'].shape, (89, 5))
    self.assertEqual(found.test['text'].shape, (9, 5))
    np.testing.assert_array_equal(found.train['text'][1], [0, 1, 2, 3, 0])
    self.call(
      train, '--text_file=mine.txt', '--sequence_length=4', *SMALL,
      '--model_options=width=8,num_heads=2', '--algorithm=ssgd',
      '--workdir=run',
    )  # fmt: skip
    description = records.read_config(self.root / 'run')['description']
    self.assertEqual(description['model'], 'transformer')
    self.assertNotIn('text_file', description)

  @parameterized.parameters(
    ('no.txt cannot be read .No such file', '--text_file=no.txt'),
    ('cannot be read .Is a directory', '--text_file=.'),
    ('is not UTF-8 text .byte 1: ', '--text_file=latin.txt'),
    ('has 3 characters, .* needs 650 or more', '--text_file=short.txt'),
    ('--text_file does nothing for --dataset=digits',
     '--text_file=short.txt --dataset=digits'),
    ('--sequence_length does nothing for --dataset=digits',
     '--sequence_length=3'),
    ('--sequence_length must be >= 1, got 0',
     '--dataset=text --sequence_length=0'),
    ('width must be >= 1 and below 2..31, got 9',
     '--dataset=text --model_options=width=99999999999999999999'),
    ('--model_options do not fit --model=transformer: .*63.* divisible',
     '--dataset=text --model_options=width=63'),
    ('num_heads must be >= 1 and below',
     '--dataset=text --model_options=num_heads=0'),
  )  # fmt: skip
  def test_a_slip_in_a_text_is_one_line(self, pattern, args):
    (self.root / 'latin.txt').write_bytes(b'a\xe9' * 1000)
    (self.root / 'short.txt').write_text('abc')
    outcome = binaries.call(train, *args.split(), '--algorithm=ssgd')
    self.assertEqual(outcome.code, 1)
    self.assertRegex(outcome.err, f'^train.py: error: .*{pattern}')
    self.assertEqual(outcome.err.count('\n'), 1)
