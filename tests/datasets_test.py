"""Tests of prsgd_jax.data.datasets."""

from concurrent import futures
import importlib.util
import os
import pathlib
import pickle
import pwd
import shutil
import socket
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import (
  DATASETS,
  DatasetError,
  load_dataset,
  loading,
  pixels,
  preparing,
  stock_builders,
  storage,
  texts,
)


def make_splits(shape, sizes=(30, 12)):
  """Random labeled images, by split."""
  rng = np.random.RandomState(0)
  return {
    split: {
      'image': rng.randint(0, 256, (n, *shape)).astype(np.uint8),
      'label': rng.randint(0, 10, n).astype(np.int32),
    }
    for split, n in zip(('train', 'test'), sizes)
  }


def rows(split):
  """The examples of a split, in an order that does not depend on TFDS."""
  return sorted(
    (int(y), x.tobytes()) for x, y in zip(split['image'], split['label'])
  )


def read_only(path, *args, **kwargs):
  del args, kwargs
  raise PermissionError(13, 'Permission denied', str(path))


class DatasetsTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.data_dir = pathlib.Path(directory.name) / 'data'
    # A call that would go to the network fails the test instead.
    self.enter_context(
      mock.patch.object(socket.socket, 'connect', side_effect=AssertionError)
    )

  def assert_fails(self, name, *fragments):
    """Asserts that loading raises one line that holds all fragments."""
    with self.assertRaises(DatasetError) as caught:
      load_dataset(name, self.data_dir)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for fragment in fragments:
      self.assertIn(fragment, message)

  def assert_same(self, dataset, other):
    for split in ('train', 'test'):
      for key in ('image', 'label'):
        np.testing.assert_array_equal(
          getattr(dataset, split)[key], getattr(other, split)[key]
        )
    self.assertEqual(dataset.num_classes, other.num_classes)


class DigitsTest(DatasetsTestCase):
  def test_is_shown_by_its_sizes(self):
    self.assertEqual(
      repr(load_dataset('digits', self.data_dir)),
      "Dataset(digits, train={'image': uint8[1437,8,8,1], 'label': "
      "int32[1437]}, test={'image': uint8[360,8,8,1], 'label': int32[360]}, "
      '10 classes)',
    )

  def test_shapes_dtypes_and_values(self):
    dataset = load_dataset('digits', self.data_dir)
    for split, n in ((dataset.train, 1437), (dataset.test, 360)):
      self.assertEqual(split['image'].shape, (n, 8, 8, 1))
      self.assertEqual(split['image'].dtype, np.uint8)
      self.assertEqual(split['image'].max(), 16)
      self.assertEqual(split['label'].shape, (n,))
      self.assertEqual(split['label'].dtype, np.int32)
      self.assertEqual(set(split['label']), set(range(10)))
    self.assertEqual(dataset.num_classes, 10)
    self.assertEqual(dataset.name, 'digits')

  def test_streamed_examples_are_those_in_memory(self):
    known = load_dataset('digits', self.data_dir)
    streamed = load_dataset('digits', self.data_dir, stream=True)
    self.assertTrue(streamed.is_streamed)
    self.assertEqual(streamed.num_examples, 1437)
    copied = pickle.loads(pickle.dumps(streamed.train))
    for source in (streamed.train, copied):
      for row in (1436, 3):
        for name, x in source[row].items():
          np.testing.assert_array_equal(x, known.train[name][row])
          self.assertEqual(x.dtype, known.train[name].dtype)
    for name, x in streamed.test.items():
      np.testing.assert_array_equal(x, known.test[name])
    for one, other in zip(
      augmentation.source_statistics(streamed.train),
      augmentation.channel_statistics(known.train['image']),
      strict=True,
    ):
      np.testing.assert_array_equal(one, other)
    wanted = pixels.statistics(streamed.train)
    with mock.patch.object(
      augmentation, 'source_statistics', side_effect=AssertionError
    ):
      for one, other in zip(
        pixels.statistics(copied), wanted, strict=True
      ):  # from the cache
        np.testing.assert_array_equal(one, other)
    text = load_dataset('text', self.data_dir, stream=True)
    self.assertEqual(text.train[2]['text'].shape, (65,))

  def test_are_the_test_set_of_uci(self):
    dataset = load_dataset('digits', self.data_dir)
    # The numbers of images of each digit that UCI's description lists.
    np.testing.assert_array_equal(
      np.bincount(dataset.train['label']) + np.bincount(dataset.test['label']),
      [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
    )
    everything = {*rows(dataset.train), *rows(dataset.test)}
    self.assertLen(everything, 1797)  # no image twice

  def test_a_second_load_agrees_and_reads_the_cache(self):
    first = load_dataset('digits', self.data_dir)
    with mock.patch.object(
      storage, 'read_prepared', side_effect=AssertionError
    ):
      self.assert_same(first, load_dataset('digits', self.data_dir))

  def test_default_data_dir_is_that_of_tfds(self):
    with mock.patch.dict(os.environ, TFDS_DATA_DIR=str(self.data_dir)):
      load_dataset('digits')
    self.assertTrue((self.data_dir / 'optical_digits' / '1.0.0').is_dir())

  def test_plain_tfds_reads_it(self):
    load_dataset('digits', self.data_dir)
    import tensorflow_datasets as tfds

    source = tfds.data_source(
      'optical_digits', split='test', data_dir=self.data_dir, download=False
    )
    self.assertLen(source, 360)
    self.assertEqual(source[0]['image'].shape, (8, 8, 1))

  def test_several_at_once_all_succeed(self):
    # A lock on a file excludes threads as it does processes.
    with futures.ThreadPoolExecutor(3) as pool:
      first, *others = pool.map(
        load_dataset, ['digits'] * 3, [self.data_dir] * 3
      )
    for other in others:
      self.assert_same(first, other)
    self.assertEqual(
      sorted(os.listdir(self.data_dir)), ['.optical_digits.lock',
                                          'optical_digits'],
    )  # fmt: skip

  def test_an_interrupted_preparation_does_no_harm(self):
    with (
      mock.patch.object(os, 'rename', side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      load_dataset('digits', self.data_dir)
    self.assertIsNone(storage.find_prepared('optical_digits', self.data_dir))
    # TFDS leaves this when it is killed.
    stale = self.data_dir / 'optical_digits' / 'incomplete.AB_1.0.0'
    stale.mkdir()
    load_dataset('digits', self.data_dir)
    self.assertFalse(stale.exists())

  def test_a_data_dir_that_cannot_be_written_is_one_line(self):
    with mock.patch.object(pathlib.Path, 'mkdir', read_only):
      self.assert_fails(
        'digits', 'cannot write to', 'Permission denied', 'pass a data_dir'
      )
    read_only_system = OSError(30, 'Read-only file system')
    with mock.patch.object(
      tempfile, 'TemporaryFile', side_effect=read_only_system
    ):
      self.assert_fails('digits', 'cannot write to', 'Read-only file system')
    shutil.rmtree(self.data_dir)
    self.data_dir.write_text('a file')
    self.assert_fails('digits', f'cannot write to {self.data_dir}: File exists')

  def test_user_logging_is_left_alone(self):
    from absl import logging

    logger = logging.get_absl_logger()
    before = (logger.level, list(logger.filters), logging.get_verbosity())
    load_dataset('digits', self.data_dir)
    after = (logger.level, list(logger.filters), logging.get_verbosity())
    self.assertEqual(before, after)


class StockTest(DatasetsTestCase):
  """Small datasets with the names, features and format of the stock ones."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = tempfile.TemporaryDirectory()
    cls.addClassCleanup(directory.cleanup)
    cls.master = pathlib.Path(directory.name)
    cls.splits = make_splits((28, 28, 1))
    builder = stock_builders.make_builder('mnist', cls.splits)
    preparing.prepare(builder, cls.master)

  def setUp(self):
    super().setUp()
    shutil.copytree(self.master, self.data_dir)
    self.directory = self.data_dir / 'mnist' / '3.0.1'
    self.train_file = next(self.directory.glob('*train*'))

  def edit_json(self, name, old, new):
    path = self.directory / name
    text = path.read_text()
    self.assertIn(old, text)
    path.write_text(text.replace(old, new))

  def test_arrays_are_those_that_were_written(self):
    dataset = load_dataset('mnist', self.data_dir)
    for split in ('train', 'test'):
      arrays = getattr(dataset, split)
      self.assertEqual(arrays['image'].dtype, np.uint8)
      self.assertEqual(arrays['label'].dtype, np.int32)
      self.assertEqual(rows(arrays), rows(self.splits[split]))
    self.assertEqual(dataset.num_classes, 10)

  def test_color_channels_keep_their_order(self):
    splits = make_splits((32, 32, 3))
    builder = stock_builders.make_builder('cifar10', splits)
    preparing.prepare(builder, self.data_dir)
    dataset = load_dataset('cifar10', self.data_dir)
    self.assertEqual(rows(dataset.train), rows(splits['train']))

  def test_the_newest_version_is_read(self):
    (self.data_dir / 'mnist' / '3.0.0').mkdir()
    (self.data_dir / 'mnist' / '1.10.0').mkdir()
    self.assertLen(load_dataset('mnist', self.data_dir).test['label'], 12)

  def test_an_unknown_name_lists_the_known_ones(self):
    self.assert_fails('imagenet', "got 'imagenet'", *DATASETS)

  @parameterized.parameters('cifar10', 'fashion_mnist')
  def test_a_missing_dataset_says_what_to_run(self, name):
    self.assert_fails(
      name,
      f'{name} is not prepared in {self.data_dir}; run: python'
      f' experiments/prepare_data.py {name} --data_dir={self.data_dir}',
    )

  def test_the_command_is_there_outside_of_a_clone(self):
    before = os.getcwd()
    self.addCleanup(os.chdir, before)
    os.chdir(self.data_dir)
    command = loading.prepare_command('mnist', self.data_dir)
    self.assertEqual(
      command,
      f'python -m experiments.prepare_data mnist --data_dir={self.data_dir}',
    )
    self.assertIsNotNone(importlib.util.find_spec('experiments.prepare_data'))

  def test_the_command_quotes_the_directory(self):
    self.data_dir = self.data_dir / 'a b'
    self.assert_fails('mnist', f"--data_dir='{self.data_dir}'")

  def test_leftovers_of_an_interrupted_preparation_are_not_a_dataset(self):
    os.rename(self.directory, self.directory.parent / 'incomplete.AB_3.0.1')
    self.assert_fails('mnist', 'is not prepared', 'prepare_data.py mnist')

  def test_a_url_is_not_a_data_dir(self):
    with self.assertRaisesRegex(DatasetError, 'local directory, got gs://x'):
      load_dataset('digits', 'gs://x')

  @parameterized.parameters('~no_such_user', '~no_such_user/data')
  def test_a_home_directory_that_is_unknown_is_one_line(self, path):
    message = f'home directory of {path} is unknown; pass another data_dir'
    with self.assertRaisesRegex(DatasetError, message):
      load_dataset('digits', path)

  def test_no_home_directory_at_all(self):
    """As with a user id that is in no passwd file, and without HOME."""
    environment = {k: v for k, v in os.environ.items() if k != 'HOME'}
    environment.pop('TFDS_DATA_DIR', None)
    with (
      mock.patch.dict(os.environ, environment, clear=True),
      mock.patch.object(pwd, 'getpwuid', side_effect=KeyError('uid')),
    ):
      with self.assertRaisesRegex(DatasetError, 'pass another data_dir, as --'):
        load_dataset('digits')
      # Without a home directory to resolve, nothing changes.
      self.assertIsNotNone(load_dataset('mnist', self.data_dir))

  def assert_unusable(self, reason):
    self.assert_fails(
      'mnist',
      str(self.directory),
      reason,
      'move that directory away',
      f'prepare_data.py mnist --data_dir={self.data_dir}',
    )

  @parameterized.parameters('dataset_info.json', 'features.json')
  def test_missing_metadata(self, name):
    (self.directory / name).unlink()
    self.assert_unusable(f'it has no {name}')

  @parameterized.parameters('dataset_info.json', 'features.json')
  def test_broken_metadata(self, name):
    path = self.directory / name
    path.write_text(path.read_text()[:100])
    self.assert_unusable('cannot be used')

  @parameterized.parameters(False, True)
  def test_a_missing_record_file(self, cached):
    if cached:
      load_dataset('mnist', self.data_dir)
    self.train_file.unlink()
    self.assert_unusable(self.train_file.name)

  @parameterized.parameters(0, 1, 100, 40000)
  def test_a_truncated_record_file(self, size):
    load_dataset('mnist', self.data_dir)  # the cache must not hide it
    self.assertLess(size, self.train_file.stat().st_size)
    os.truncate(self.train_file, size)
    self.assert_unusable('cannot be used')

  def test_flipped_bits_never_change_the_arrays(self):
    first = load_dataset('mnist', self.data_dir)
    good = self.train_file.read_bytes()
    failures = 0
    for position in range(0, len(good), len(good) // 40):
      bad = bytearray(good)
      bad[position] ^= 8
      self.train_file.write_bytes(bad)
      try:
        self.assert_same(first, load_dataset('mnist', self.data_dir))
      except DatasetError as error:
        self.assertIn('move that directory away', str(error))
        failures += 1
    self.assertGreater(failures, 0)  # the rest hit padding

  @parameterized.named_parameters(
    ('empty_split', '"30"', '"0"', 'its split train is missing or empty'),
    ('more_examples', '"30"', '"40"', 'index 30 out of bound 30'),
    ('no_split', '"train"', '"other"', 'its split train is missing or empty'),
    ('format', 'array_record', 'tfrecord', 'file format is tfrecord'),
  )
  def test_metadata_that_promises_something_else(self, old, new, reason):
    self.edit_json('dataset_info.json', old, new)
    self.assert_unusable(reason)

  @parameterized.named_parameters(
    ('shape', '"28"', '"26"', 'its images are uint8[30, 28, 28, 1]'),
    ('names', '"label"', '"klass"', "it holds ['image', 'klass']"),
  )
  def test_features_that_are_others(self, old, new, reason):
    self.edit_json('features.json', old, new)
    self.assert_unusable(reason)

  def test_an_existing_dataset_is_never_overwritten(self):
    self.train_file.unlink()
    before = sorted(os.listdir(self.directory))
    builder = stock_builders.make_builder('mnist', self.splits)
    preparing.prepare(builder, self.data_dir)
    self.assertEqual(sorted(os.listdir(self.directory)), before)


class TextTest(DatasetsTestCase):
  def test_sequences_are_of_the_given_length_and_in_the_order_of_the_text(self):
    whole = texts.shakespeare_splits()
    for length, dataset in (
      (64, load_dataset('text', self.data_dir)),
      (50, load_dataset('text', self.data_dir, sequence_length=50)),
    ):
      self.assertEqual(dataset.num_classes, 65)
      for split in ('train', 'test'):
        array = getattr(dataset, split)['text']
        n = (whole[split]['text'].size - 1) // length
        self.assertEqual(array.shape, (n, length + 1))
        self.assertEqual(array.dtype, np.uint8)
        text = whole[split]['text'][0, : n * length].tobytes().decode()
        self.assertEqual(texts.decode(array[:, :-1].ravel()), text)
      self.assertEqual(dataset.num_examples, len(dataset.train['text']))

  def test_the_directory_is_the_stock_one_and_plain_tfds_reads_it(self):
    load_dataset('text', self.data_dir)
    import tensorflow_datasets as tfds

    for split, text in texts.shakespeare_splits().items():
      source = tfds.data_source(
        'tiny_shakespeare', split=split, data_dir=self.data_dir, download=False
      )
      self.assertLen(source, 1)
      self.assertEqual(source[0]['text'], text['text'].tobytes())

  def test_a_truncated_record_file_says_what_to_do(self):
    load_dataset('text', self.data_dir)
    directory = self.data_dir / 'tiny_shakespeare' / '1.0.0'
    os.truncate(next(directory.glob('*train*')), 1000)
    self.assert_fails('text', 'move that directory away', 'prepare_data.py')

  @parameterized.parameters(
    ('digits', 64, 'digits has no sequences of text; leave out'),
    ('text', 0, 'must be in 1..1003853, got 0'),
    ('text', 60_000, 'must be in 1..55769, got 60000'),
  )
  def test_bad_lengths_are_refused(self, name, length, message):
    with self.assertRaisesRegex(DatasetError, message):
      load_dataset(name, self.data_dir, sequence_length=length)


class CacheTest(DatasetsTestCase):
  """The file beside a data set that caches its arrays."""

  def setUp(self):
    super().setUp()
    self.first = load_dataset('digits', self.data_dir)
    self.directory = self.data_dir / 'optical_digits' / '1.0.0'
    self.cache = self.directory.parent / '.prsgd_jax-1.0.0.npz'

  def load_counting(self):
    """Loads, and returns the dataset and whether the dataset was decoded."""
    with mock.patch.object(
      storage, 'read_prepared', side_effect=storage.read_prepared
    ) as read:
      dataset = load_dataset('digits', self.data_dir)
    return dataset, read.called

  def test_flipped_bits_never_change_the_arrays(self):
    good = self.cache.read_bytes()
    stored = (
      {'train': self.first.train, 'test': self.first.test},
      self.first.num_classes,
    )
    # The headers of the members and of the archive, and all over the arrays.
    starts = [i for i in range(len(good)) if good[i : i + 2] == b'PK']
    starts += [i for i in range(len(good)) if good[i : i + 6] == b'\x93NUMPY']
    near = {i + j for i in starts for j in range(0, 130, 13)}
    positions = sorted(near | set(range(0, len(good), len(good) // 20)))
    with (
      mock.patch.object(storage, 'read_prepared', return_value=stored),
      mock.patch.object(loading, '_write_cache'),
      mock.patch.object(loading.logging, 'warning'),
    ):
      for i in positions:
        if i < len(good):
          bad = bytearray(good)
          bad[i] ^= 4
          self.cache.write_bytes(bad)
          self.assert_same(self.first, load_dataset('digits', self.data_dir))

  @parameterized.parameters(0, 10, 5000)
  def test_a_truncated_cache_is_replaced(self, size):
    os.truncate(self.cache, size)
    with self.assertLogs('absl', 'WARNING'):
      dataset, decoded = self.load_counting()
    self.assert_same(self.first, dataset)
    self.assertTrue(decoded)
    self.assertFalse(self.load_counting()[1])

  def test_touching_a_file_of_the_dataset_outdates_it(self):
    for path in sorted(self.directory.iterdir()):
      os.utime(path, ns=(1, 1))
      self.assertTrue(self.load_counting()[1], path)
      self.assertFalse(self.load_counting()[1], path)

  def test_a_file_copied_over_with_its_times_outdates_it(self):
    path = next(self.directory.glob('*train*'))
    copy = self.data_dir / 'copy'
    shutil.copy2(path, copy)
    os.replace(copy, path)
    self.assertTrue(self.load_counting()[1])

  def test_it_may_be_deleted(self):
    self.cache.unlink()
    dataset, decoded = self.load_counting()
    self.assert_same(self.first, dataset)
    self.assertTrue(decoded)

  def test_it_is_readable_by_whoever_the_umask_allows(self):
    umask = os.umask(0)
    os.umask(umask)
    self.assertEqual(self.cache.stat().st_mode & 0o777, 0o666 & ~umask)

  @parameterized.parameters('open', 'replace')
  def test_loading_works_where_it_cannot_be_written(self, what):
    self.cache.unlink()
    module = os if what == 'replace' else pathlib.Path
    real = pathlib.Path.open
    fail = (
      read_only
      if what == 'replace'
      else lambda path, mode='r', **kw: (
        read_only(path) if 'x' in mode else real(path, mode, **kw)
      )
    )
    with (
      mock.patch.object(module, what, fail),
      self.assertLogs('absl', 'WARNING') as logs,
    ):
      dataset = load_dataset('digits', self.data_dir)
    self.assert_same(self.first, dataset)
    self.assertIn('cannot write', logs.output[0])
    self.assertEqual(os.listdir(self.directory.parent), ['1.0.0'])

  @parameterized.parameters('pickle', 'directory')
  def test_another_thing_in_its_place_is_not_read(self, what):
    with np.load(self.cache) as cache:
      arrays = dict(cache)
    self.cache.unlink()
    if what == 'directory':
      self.cache.mkdir()
    else:
      arrays['train_image'] = np.array([self], object)
      with mock.patch.object(CacheTest, '__reduce__', lambda self: (int, ())):
        np.savez(self.cache, **arrays)
    with self.assertLogs('absl', 'WARNING'):
      dataset, decoded = self.load_counting()
    self.assertTrue(decoded)
    self.assert_same(self.first, dataset)


if __name__ == '__main__':
  absltest.main()
