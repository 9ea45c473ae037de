"""Tests of experiments/prepare_data.py and of what it reads archives with."""

import gzip
import hashlib
import http.client
import http.server
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from unittest import mock
import urllib.error
import urllib.request
import zipfile

from absl.testing import absltest, parameterized
import numpy as np

from experiments import prepare_data
from prsgd_jax.data.datasets import archives, load_dataset, preparing, storage
from tests import binaries

_ROOT = pathlib.Path(__file__).parents[1]
_SCRIPT = _ROOT / 'experiments' / 'prepare_data.py'
_TIMEOUT = 60  # seconds, for a process that hangs


def make_cifar10():
  """Small files of CIFAR-10's format, and the splits they hold."""
  rng = np.random.RandomState(0)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  image = rng.randint(0, 256, (6, 4, 32, 32, 3)).astype(np.uint8)
  label = rng.randint(0, 10, (6, 4)).astype(np.uint8)
  members = {}
  for name, x, y in zip(names, image, label):
    members[name] = b''.join(
      bytes([int(yi)]) + b''.join(xi[:, :, c].tobytes() for c in range(3))
      for xi, yi in zip(x, y)
    )
  return members, {
    'train': {'image': np.concatenate(image[:5]), 'label': label[:5].ravel()},
    'test': {'image': image[5], 'label': label[5]},
  }


def make_idx():
  """Small files of MNIST's format, and the splits they hold."""
  rng = np.random.RandomState(0)
  members, splits = {}, {}
  for split, prefix, n in (('train', 'train', 20), ('test', 't10k', 7)):
    image = rng.randint(0, 256, (n, 28, 28, 1)).astype(np.uint8)
    label = rng.randint(0, 10, n).astype(np.uint8)
    sizes = np.array([n, 28, 28], '>u4').tobytes()
    members[f'{prefix}-images-idx3-ubyte'] = (
      b'\0\0\x08\x03' + sizes + image.tobytes()
    )
    members[f'{prefix}-labels-idx1-ubyte'] = (
      b'\0\0\x08\x01' + sizes[:4] + label.tobytes()
    )
    splits[split] = {'image': image, 'label': label}
  return members, splits


def compressed(members):
  return {f'{name}.gz': gzip.compress(d) for name, d in members.items()}


def write_tar(path, members, mode='w:gz', prefix='some-directory/'):
  with tarfile.open(path, mode) as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(prefix + name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def write_zip(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr('some-directory/' + name, data)


def write_directory(path, members):
  path.mkdir()
  for name, data in members.items():
    (path / name).write_bytes(data)


def rows(split):
  return sorted(
    (int(y), x.tobytes()) for x, y in zip(split['image'], split['label'])
  )


class PrepareDataTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.tmp = pathlib.Path(directory.name)
    self.data_dir = self.tmp / 'data'

  def run_main(self, *args):
    """Runs the script in this process: (exit code, stdout, stderr)."""
    return binaries.call(
      prepare_data, f'--data_dir={self.data_dir}', *map(str, args)
    )

  def assert_fails(self, args, *fragments):
    """Asserts one line on stderr, which holds all fragments; nothing made."""
    before = storage.find_prepared(str(args[0]) if args else '', self.data_dir)
    code, _, err = self.run_main(*args)
    self.assertNotIn(code, (0, None))
    *warnings, err = err.splitlines()
    for warning in warnings:
      self.assertStartsWith(warning, 'prepare_data.py: WARNING')
    self.assertStartsWith(err, 'prepare_data.py: error: ')
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
    name=('mnist', 'fashion_mnist'),
    write=(write_directory, write_tar, write_zip),
  )
  def test_idx_archives_become_stock_datasets(self, name, write):
    members, splits = make_idx()
    path = self.tmp / 'archive'
    write(path, compressed(members))
    code, _, err = self.run_main(name, f'--from_archive={path}', '--noverify')
    self.assertEqual(code, 0, err)
    self.assertIn(f'WARNING: NOT THE PUBLISHED {name.upper()}', err)
    self.assert_prepared(name, splits)

  def test_uncompressed_files_will_do(self):
    members, splits = make_idx()
    write_directory(self.tmp / 'files', members)
    self.run_main('mnist', f'--from_archive={self.tmp}/files', '--noverify')
    self.assert_prepared('mnist', splits)

  def test_cifar10_becomes_the_stock_dataset_of_plain_tfds(self):
    members, splits = make_cifar10()
    path = self.tmp / 'cifar-10-binary.tar.gz'
    write_tar(path, members)
    self.run_main('cifar10', f'--from_archive={path}', '--noverify')
    self.assert_prepared('cifar10', splits)
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

  def test_nothing_but_the_dataset_and_a_lock_is_left(self):
    members, _ = make_idx()
    write_directory(self.tmp / 'files', members)
    self.run_main('mnist', f'--from_archive={self.tmp}/files', '--noverify')
    self.assertEqual(
      sorted(os.listdir(self.data_dir)), ['.mnist.lock', 'mnist']
    )

  def test_published_contents_pass_in_silence(self):
    members, splits = make_idx()
    write_directory(self.tmp / 'files', members)
    official = archives.ARCHIVES['mnist']
    sums = {m: hashlib.md5(data).hexdigest() for m, data in members.items()}
    with mock.patch.dict(archives.ARCHIVES, mnist=official._replace(md5=sums)):
      code, _, err = self.run_main('mnist', f'--from_archive={self.tmp}/files')
    self.assertEqual((code, err), (0, ''))
    self.assert_prepared('mnist', splits)

  def test_other_contents_are_refused_unless_asked_for(self):
    members, _ = make_idx()
    write_directory(self.tmp / 'files', members)
    self.assert_fails(
      ('mnist', f'--from_archive={self.tmp}/files'),
      'train-images-idx3-ubyte',
      'does not have the published MD5 sum',
      '--noverify',
    )

  @parameterized.parameters(
    ('digits', 'optical_digits'), ('text', 'tiny_shakespeare')
  )
  def test_what_is_installed_needs_no_archive(self, name, builder):
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

  def test_a_bad_dataset_is_left_as_it_is_and_said_so(self):
    members, _ = make_idx()
    write_directory(self.tmp / 'files', members)
    args = ('mnist', f'--from_archive={self.tmp}/files', '--noverify')
    self.run_main(*args)
    directory = self.data_dir / 'mnist' / '3.0.1'
    os.truncate(next(directory.glob('*test*')), 100)
    before = {p: p.stat() for p in directory.iterdir()}
    self.assert_fails(
      args, str(directory), 'cannot be used', 'move that directory away'
    )
    self.assertEqual({p: p.stat() for p in directory.iterdir()}, before)
    # What the message asks for helps.
    shutil.move(directory, self.tmp / 'away')
    self.assertEqual(self.run_main(*args)[0], 0)


class WrongArchiveTest(PrepareDataTestCase):
  """Each is one line on stderr, and makes nothing."""

  def assert_refused(self, name, path, *fragments):
    self.assert_fails(
      (name, f'--from_archive={path}', '--noverify'), *fragments
    )

  def test_no_such_file(self):
    self.assert_refused(
      'cifar10', self.tmp / 'no', 'there is no archive', 'cs.toronto.edu'
    )

  def test_a_home_directory_that_is_unknown(self):
    self.assert_refused(
      'mnist',
      '~no_such_user/x',
      'home directory',
      'pass another --from_archive',
    )

  def test_a_file_that_unpacks_to_more_than_it_should(self):
    members = compressed(make_idx()[0])
    member = 't10k-labels-idx1-ubyte'
    members[f'{member}.gz'] = gzip.compress(bytes(10_009))
    write_directory(self.tmp / 'files', members)
    self.assert_refused(
      'mnist', self.tmp / 'files', f'{member}.gz has more than the 10008 bytes'
    )

  @parameterized.parameters('w', 'w:gz', 'w:xz', 'w:bz2')
  def test_a_tar_cut_short(self, mode):
    path = self.tmp / 'archive'
    write_tar(path, make_cifar10()[0], mode)
    os.truncate(path, path.stat().st_size // 2)
    self.assert_refused('cifar10', path, str(path), 'fetch https://')

  def test_a_zip_cut_short(self):
    path = self.tmp / 'archive'
    write_zip(path, make_cifar10()[0])
    os.truncate(path, path.stat().st_size // 2)
    self.assert_refused('cifar10', path, 'damaged, cut short, or neither')

  @parameterized.parameters(b'', b'<html>not found</html>', bytes(4096))
  def test_another_kind_of_file(self, data):
    path = self.tmp / 'archive'
    path.write_bytes(data)
    self.assert_refused('cifar10', path, str(path), 'fetch https://')

  def test_the_archive_of_another_dataset(self):
    path = self.tmp / 'archive'
    write_tar(path, make_idx()[0])
    self.assert_refused(
      'cifar10', path, 'lacks data_batch_1.bin', 'not the archive of cifar10'
    )

  def test_a_missing_file(self):
    members = compressed(make_idx()[0])
    del members['t10k-labels-idx1-ubyte.gz']
    write_directory(self.tmp / 'files', members)
    self.assert_refused(
      'mnist', self.tmp / 'files', 'lacks t10k-labels-idx1-ubyte'
    )

  def test_a_compressed_file_cut_short(self):
    members = compressed(make_idx()[0])
    for name in members:
      members[name] = members[name][:-9]
    write_directory(self.tmp / 'files', members)
    self.assert_refused(
      'mnist',
      self.tmp / 'files',
      'train-images-idx3-ubyte.gz',
      'damaged or cut short',
    )

  @parameterized.named_parameters(
    ('type', 'train-images-idx3-ubyte', lambda d: d[:2] + b'\x0d' + d[3:]),
    ('cut', 'train-images-idx3-ubyte', lambda d: d[:-1]),
    ('no_header', 't10k-labels-idx1-ubyte', lambda d: d[:5]),
    ('counts', 't10k-labels-idx1-ubyte',
     lambda d: d[:7] + bytes([d[7] - 1]) + d[8:-1]),
    ('label', 't10k-labels-idx1-ubyte', lambda d: d[:-1] + b'\x0a'),
    ('empty', 't10k-labels-idx1-ubyte', lambda d: d[:7] + b'\0'),
  )  # fmt: skip
  def test_other_bytes_in_idx_files(self, member, change):
    members, _ = make_idx()
    members[member] = change(members[member])
    write_directory(self.tmp / 'files', members)
    self.assert_refused('mnist', self.tmp / 'files', 'must')

  def test_other_bytes_in_cifar10(self):
    members, _ = make_cifar10()
    members['data_batch_3.bin'] += b'x'
    write_tar(self.tmp / 'archive', members)
    self.assert_refused('cifar10', self.tmp / 'archive', 'multiple of 3073')


class CommandLineTest(PrepareDataTestCase):
  def test_what_cannot_be_meant_is_one_line(self):
    self.assert_fails((), 'expected NAME', "got 'no name'", '--help')
    self.assert_fails(('mnist', 'cifar10'), 'expected NAME', 'mnist cifar10')
    self.assert_fails(('imagenet',), "got 'imagenet'", 'fashion_mnist')
    self.assert_fails(('mnist', '--form_archive=x'), 'form_archive', '--help')
    self.assert_fails(('mnist', '--verify=maybe'), 'maybe', '--help')

  def test_a_data_dir_that_is_a_file(self):
    self.data_dir.write_text('')
    write_directory(self.tmp / 'files', make_idx()[0])
    self.assert_fails(
      ('mnist', f'--from_archive={self.tmp}/files', '--noverify'),
      f'cannot write to {self.data_dir}: it is a file',
    )

  def test_a_full_disk(self):
    write_directory(self.tmp / 'files', make_idx()[0])
    full = OSError(28, 'No space left on device')
    with mock.patch.object(preparing, '_flush', side_effect=full):
      self.assert_fails(
        ('mnist', f'--from_archive={self.tmp}/files', '--noverify'),
        'No space left on device',
      )
    self.assertEqual(os.listdir(self.data_dir), ['.mnist.lock'])

  def run_script(self, *args):
    return subprocess.run(
      [sys.executable, str(_SCRIPT), *args],
      env={
        **os.environ,
        'PYTHONPATH': str(_ROOT),
        # A network on which nobody answers.
        'http_proxy': 'http://127.0.0.1:9',
        'https_proxy': 'http://127.0.0.1:9',
      },
      capture_output=True,
      text=True,
      timeout=_TIMEOUT,
      check=False,
    )

  def test_as_a_program_an_error_is_one_line_and_a_code(self):
    done = self.run_script('fashion_mnist', f'--data_dir={self.data_dir}')
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertStartsWith(
      done.stderr, 'prepare_data.py: error: cannot download http'
    )
    self.assertEqual(done.stderr.count('\n'), 1, done.stderr)
    self.assertIn('pass --from_archive=DIRECTORY', done.stderr)

  def test_as_a_program_help_says_how_to_use_it(self):
    done = self.run_script('--help')
    self.assertEqual(done.stderr, '')
    for words in ('prepare_data.py NAME', '--from_archive', '--noverify'):
      self.assertIn(words, done.stdout)


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `files`; says that those in `short` are longer than they are."""

  files: dict[str, bytes]
  short: tuple[str, ...] = ()

  def do_GET(self):
    name = self.path.rsplit('/', 1)[-1]
    if name not in self.files:
      self.send_error(404)
      return
    self.send_response(200)
    length = len(self.files[name]) + 5 * (name in self.short)
    self.send_header('Content-Length', str(length))
    self.end_headers()
    self.wfile.write(self.files[name])

  def log_message(self, *args):
    del args


class DownloadTest(PrepareDataTestCase):
  """Downloads, from a server of the test's own."""

  def serve(self, files, short=()):
    handler = type('H', (Handler,), {'files': files, 'short': short})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    self.addCleanup(thread.join)
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    url = f'http://127.0.0.1:{server.server_port}/'
    self.enter_context(mock.patch.dict(os.environ, no_proxy='127.0.0.1'))
    self.enter_context(
      mock.patch.dict(
        archives.ARCHIVES,
        {n: a._replace(base_url=url) for n, a in archives.ARCHIVES.items()},
      )
    )

  def test_idx_files(self):
    members, splits = make_idx()
    self.serve(compressed(members))
    code, _, err = self.run_main('mnist', '--noverify')
    self.assertEqual(code, 0, err)
    self.assert_prepared('mnist', splits)

  def test_cifar10(self):
    members, splits = make_cifar10()
    path = self.tmp / 'archive'
    write_tar(path, members)
    self.serve({'cifar-10-binary.tar.gz': path.read_bytes()})
    code, _, err = self.run_main('cifar10', '--noverify')
    self.assertEqual(code, 0, err)
    self.assert_prepared('cifar10', splits)

  def assert_download_fails(self, *fragments):
    self.assert_fails(
      ('mnist', '--noverify'), '--from_archive=DIRECTORY', *fragments
    )

  def test_a_file_that_is_not_there(self):
    self.serve({})
    self.assert_download_fails('cannot download', 'Not Found')

  def test_a_file_that_stops_early(self):
    files = compressed(make_idx()[0])
    self.serve(files, short=tuple(files))
    self.assert_download_fails('cannot download')

  def test_a_page_in_place_of_a_file(self):
    self.serve(dict.fromkeys(compressed(make_idx()[0]), b'<html>log in'))
    self.assert_download_fails('damaged or cut short')

  @parameterized.parameters(
    urllib.error.URLError(OSError(-2, 'Name or service not known')),
    TimeoutError('timed out'),
    http.client.RemoteDisconnected('closed'),
  )
  def test_no_network(self, error):
    with mock.patch.object(urllib.request, 'urlopen', side_effect=error):
      self.assert_fails(
        ('cifar10',), 'cannot download https://', 'by hand', '--from_archive'
      )


if __name__ == '__main__':
  absltest.main()
