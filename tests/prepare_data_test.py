"""Tests of experiments/prepare_data.py and of reading archives."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import shutil
import tarfile
import tempfile
import threading
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from experiments import prepare_data
from prsgd_jax.data.datasets import archives, load_dataset, storage
from tests import binaries


def make_cifar10():
  """Small files of CIFAR-10's format, and the splits they hold."""
  rng = np.random.RandomState(0)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  image = rng.randint(0, 256, (6, 4, 32, 32, 3)).astype(np.uint8)
  label = rng.randint(0, 10, (6, 4)).astype(np.uint8)
  plain = {}
  for name, x, y in zip(names, image, label):
    plain[name] = b''.join(
      bytes([int(yi)]) + b''.join(xi[:, :, c].tobytes() for c in range(3))
      for xi, yi in zip(x, y)
    )
  return plain, {
    'train': {'image': np.concatenate(image[:5]), 'label': label[:5].ravel()},
    'test': {'image': image[5], 'label': label[5]},
  }


def make_idx():
  """Small files of MNIST's format, and the splits they hold."""
  rng = np.random.RandomState(0)
  plain, splits = {}, {}
  for split, prefix, n in (('train', 'train', 20), ('test', 't10k', 7)):
    image = rng.randint(0, 256, (n, 28, 28, 1)).astype(np.uint8)
    label = rng.randint(0, 10, n).astype(np.uint8)
    sizes = np.array([n, 28, 28], '>u4').tobytes()
    plain[f'{prefix}-images-idx3-ubyte'] = (
      b'\0\0\x08\x03' + sizes + image.tobytes()
    )
    plain[f'{prefix}-labels-idx1-ubyte'] = (
      b'\0\0\x08\x01' + sizes[:4] + label.tobytes()
    )
    splits[split] = {'image': image, 'label': label}
  return plain, splits


def pack(name, plain):
  """The published files of an archive of these."""
  if name != 'cifar10':
    return {f'{file}.gz': gzip.compress(x) for file, x in plain.items()}
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
    for file, data in {'readme.html': b'<html>', **plain}.items():
      entry = tarfile.TarInfo(f'cifar-10-batches-bin/{file}')
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  return {'cifar-10-binary.tar.gz': buffer.getvalue()}


def rows(split):
  return sorted(
    (int(y), x.tobytes()) for x, y in zip(split['image'], split['label'])
  )


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serve a directory and count the requests."""

  def do_GET(self):
    self.server.requests.append(self.path)
    super().do_GET()

  def log_message(self, *args):
    del args


class PrepareDataTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tmp = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir = self.tmp / 'data'

  def publish(self, name):
    """Make a small archive the official one; return its files and splits."""
    plain, splits = make_cifar10() if name == 'cifar10' else make_idx()
    packed = pack(name, plain)
    official = archives.ARCHIVES[name]
    # The names are the official ones.
    self.assertEqual(packed.keys(), official.packed.keys())
    self.assertEqual(plain.keys(), official.plain.keys())
    small = official._replace(
      packed={f: hashlib.sha256(x).hexdigest() for f, x in packed.items()},
      plain={f: hashlib.md5(x).hexdigest() for f, x in plain.items()},
    )
    self.enterContext(mock.patch.dict(archives.ARCHIVES, {name: small}))
    return packed, plain, splits

  def write(self, files, directory='files'):
    path = self.tmp / directory
    path.mkdir()
    for name, data in files.items():
      (path / name).write_bytes(data)
    return path

  def run_main(self, *args):
    """Run the script in this process: (exit code, stdout, stderr)."""
    return binaries.call(
      prepare_data, f'--data_dir={self.data_dir}', *map(str, args)
    )

  def assert_fails(self, args, *fragments):
    """Assert one line on stderr, which holds all fragments; nothing made."""
    before = storage.find_prepared(str(args[0]) if args else '', self.data_dir)
    code, _, err = self.run_main(*args)
    self.assertNotIn(code, (0, None))
    self.assertStartsWith(err, 'prepare_data.py: error: ')
    self.assertEqual(err.count('\n'), 1, err)
    for fragment in fragments:
      self.assertIn(fragment, err)
    if args:
      self.assertEqual(
        storage.find_prepared(str(args[0]), self.data_dir), before
      )

  def assert_prepared(self, name, splits):
    dataset = load_dataset(name, self.data_dir)
    self.assertEqual(rows(dataset.train), rows(splits['train']))
    self.assertEqual(rows(dataset.test), rows(splits['test']))


class PrepareDataTest(PrepareDataTestCase):
  @parameterized.product(
    name=('cifar10', 'mnist', 'fashion_mnist'), packed=(True, False)
  )
  def test_official_files_become_the_dataset(self, name, packed):
    packed_files, plain_files, splits = self.publish(name)
    path = self.write(packed_files if packed else plain_files)
    done = self.run_main(name, f'--from_archive={path}')
    self.assertEqual((done.code, done.err), (0, ''))
    self.assert_prepared(name, splits)
    self.assertEqual(sorted(os.listdir(self.data_dir)), [f'.{name}.lock', name])

  def test_cifar10_becomes_the_stock_dataset_of_plain_tfds(self):
    packed, _, splits = self.publish('cifar10')
    path = self.write(packed) / 'cifar-10-binary.tar.gz'
    path = path.rename(self.tmp / 'another name')
    self.run_main('cifar10', f'--from_archive={path}')
    import tensorflow_datasets as tfds

    builder = tfds.builder(
      'cifar10', data_dir=self.data_dir, file_format='array_record'
    )
    self.assertEqual(builder.info.full_name, 'cifar10/3.0.2')
    self.assertEqual(builder.info.features['label'].names[9], 'truck')
    self.assertEqual(
      builder.info.module_name, 'tensorflow_datasets.image_classification.cifar'
    )
    for example in builder.as_data_source('train'):
      split, index = example['id'].decode().split('_')
      self.assertEqual(split, 'train')
      np.testing.assert_array_equal(
        example['image'], splits['train']['image'][int(index)]
      )

  @parameterized.parameters(*archives.ARCHIVES)
  def test_checksums_are_those_of_tfds(self, name):
    import tensorflow_datasets as tfds

    base_url, packed, _ = archives.ARCHIVES[name]
    published = tfds.builder_cls(name).url_infos
    self.assertEqual(
      {base_url + file: sha256 for file, sha256 in packed.items()},
      {url: info.checksum for url, info in published.items()},
    )

  @parameterized.parameters(
    ('digits', 'optical_digits'), ('text', 'tiny_shakespeare')
  )
  def test_embedded_datasets_need_no_archive(self, name, builder):
    code, out, err = self.run_main(name)
    self.assertEqual((code, err), (0, ''))
    self.assertIn(str(self.data_dir / builder / '1.0.0'), out)
    self.assert_fails((name, '--from_archive=x'), f'{name} has no archive')

  def test_a_good_dataset_is_left_as_it_is(self):
    self.run_main('digits')
    directory = self.data_dir / 'optical_digits' / '1.0.0'
    before = {p: p.stat() for p in directory.iterdir()}
    code, out, _ = self.run_main('digits')
    self.assertEqual(code, 0)
    self.assertIn(f'already prepared in {directory}, left as it is', out)
    self.assertEqual({p: p.stat() for p in directory.iterdir()}, before)

  def test_a_bad_dataset_is_left_as_it_is_and_reported(self):
    packed, _, _ = self.publish('mnist')
    args = ('mnist', f'--from_archive={self.write(packed)}')
    self.run_main(*args)
    directory = self.data_dir / 'mnist' / '3.0.1'
    os.truncate(next(directory.glob('*test*')), 100)
    before = {p: p.stat() for p in directory.iterdir()}
    self.assert_fails(
      args, str(directory), 'cannot be used', 'move that directory away'
    )
    self.assertEqual({p: p.stat() for p in directory.iterdir()}, before)
    # The fix in the message works.
    shutil.move(directory, self.tmp / 'away')
    self.assertEqual(self.run_main(*args).code, 0)


class WrongArchiveTest(PrepareDataTestCase):
  """Each is one line on stderr; nothing is made."""

  def assert_refused(self, name, path, *fragments):
    self.assert_fails((name, f'--from_archive={path}'), *fragments)

  def test_no_such_file(self):
    self.assert_refused(
      'cifar10',
      self.tmp / 'no',
      'there is no archive',
      'fetch cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/ or'
      ' a mirror, and pass --from_archive=FILE',
    )

  def test_a_home_directory_that_is_unknown(self):
    self.assert_refused(
      'mnist',
      '~no_such_user/x',
      'home directory',
      'pass another --from_archive',
    )

  @parameterized.parameters('cifar10', 'mnist')
  def test_other_bytes_are_refused_before_they_are_unpacked(self, name):
    packed, plain, _ = self.publish(name)
    file = next(iter(packed))
    path = self.write({**packed, file: packed[file][:-9] + bytes(9)})
    whole = path / file if name == 'cifar10' else path
    with (
      mock.patch.object(gzip, 'decompress', side_effect=AssertionError),
      mock.patch.object(tarfile, 'open', side_effect=AssertionError),
    ):
      self.assert_refused(
        name,
        whole,
        f'{path / file} does not have the published sha256 sum',
        'unpack it and pass the directory of',
        next(iter(plain)),
        '--dataset=MODULE:NAME',
      )

  def test_other_bytes_in_an_unpacked_file_are_refused(self):
    _, plain, _ = self.publish('mnist')
    file = 't10k-labels-idx1-ubyte'
    path = self.write({**plain, file: plain[file][:-1]})
    self.assert_refused(
      'mnist', path, f'{path / file} does not have the published md5 sum'
    )

  def test_a_missing_file(self):
    packed, _, _ = self.publish('mnist')
    del packed['t10k-labels-idx1-ubyte.gz']
    path = self.write(packed)
    self.assert_refused(
      'mnist', path, f'{path} lacks t10k-labels-idx1-ubyte', 'DIRECTORY'
    )

  def test_another_kind_of_file(self):
    os.mkfifo(self.tmp / 'pipe')  # to open it is to wait for its writer
    self.assert_refused('cifar10', self.tmp / 'pipe', 'lacks data_batch_1.bin')

  def test_a_file_that_cannot_be_read(self):
    packed, _, _ = self.publish('cifar10')
    denied = PermissionError(13, 'Permission denied', 'x.tar.gz')
    with mock.patch.object(tarfile, 'open', side_effect=denied):
      self.assert_refused(
        'cifar10', self.write(packed), 'cannot read x.tar.gz: Permission denied'
      )


class CommandLineTest(PrepareDataTestCase):
  def test_what_cannot_be_meant_is_one_line(self):
    self.assert_fails((), 'expected NAME', "got 'no name'", '--help')
    self.assert_fails(('mnist', 'cifar10'), 'expected NAME', 'mnist cifar10')
    self.assert_fails(('imagenet',), "got 'imagenet'", 'fashion_mnist')
    self.assert_fails(('mnist', '--form_archive=x'), 'form_archive', '--help')

  def test_help_describes_how_to_use_it(self):
    done = self.run_main('--help')
    self.assertEqual((done.code, done.err), (0, ''))
    for words in ('prepare_data.py NAME', '--from_archive', 'unpack them'):
      self.assertIn(words, done.out)

  def test_a_data_dir_that_is_a_file(self):
    self.data_dir.write_text('')
    self.assert_fails(
      ('mnist',), f'cannot write to {self.data_dir}: File exists'
    )

  def test_a_full_disk(self):
    packed, _, _ = self.publish('mnist')
    full = OSError(28, 'No space left on device')
    with mock.patch.object(os, 'rename', side_effect=full):
      self.assert_fails(
        ('mnist', f'--from_archive={self.write(packed)}'),
        'No space left on device',
      )
    self.assertEqual(os.listdir(self.data_dir / 'mnist'), [])


class DownloadTest(PrepareDataTestCase):
  """Downloads, from a server of the test's own."""

  def serve(self, name, files):
    """Serve files in place of the official server."""
    root = self.write(files, 'served')
    server = http.server.ThreadingHTTPServer(
      ('127.0.0.1', 0), functools.partial(Handler, directory=root)
    )
    server.requests = []
    thread = threading.Thread(
      target=server.serve_forever, kwargs={'poll_interval': 0.01}
    )
    thread.start()
    self.addCleanup(server.server_close)
    self.addCleanup(thread.join)
    self.addCleanup(server.shutdown)
    self.publish_at(name, f'http://127.0.0.1:{server.server_port}/')
    return server

  def publish_at(self, name, base_url):
    self.enterContext(mock.patch.dict(os.environ, no_proxy='127.0.0.1'))
    moved = archives.ARCHIVES[name]._replace(base_url=base_url)
    self.enterContext(mock.patch.dict(archives.ARCHIVES, {name: moved}))

  @parameterized.parameters('cifar10', 'mnist')
  def test_downloads_once(self, name):
    packed, _, splits = self.publish(name)
    server = self.serve(name, packed)
    done = self.run_main(name)
    self.assertEqual((done.code, done.err), (0, ''))
    self.assert_prepared(name, splits)
    self.assertLen(server.requests, len(packed))
    # As after a disk that was full: the downloads are still there.
    shutil.rmtree(self.data_dir / name)
    self.assertEqual(self.run_main(name).code, 0)
    self.assertLen(server.requests, len(packed))
    self.assert_prepared(name, splits)

  def assert_download_fails(self, *fragments):
    self.assert_fails(
      ('mnist',), 'cannot download http://', '--from_archive=DIRECTORY',
      *fragments,
    )  # fmt: skip
    downloads = self.data_dir / 'downloads' / 'mnist'
    self.assertEqual([*downloads.glob('*')], [])

  def test_a_file_that_is_not_there(self):
    self.publish('mnist')
    self.serve('mnist', {})
    self.assert_download_fails('404 Client Error')

  def test_other_bytes(self):
    packed, _, _ = self.publish('mnist')
    self.serve('mnist', dict.fromkeys(packed, b'<html>log in'))
    self.assert_download_fails('does not match the known hash')

  def test_no_network(self):
    self.publish_at('mnist', 'http://127.0.0.1:9/')
    self.assert_download_fails('Connection refused')


if __name__ == '__main__':
  absltest.main()
