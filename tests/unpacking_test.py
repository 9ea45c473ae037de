"""Tests of `datasets.unpacking`: damaged and hostile archives."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import random
import tarfile
import tempfile
import tracemalloc
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized

from prsgd_jax.data.datasets import archives, unpacking

SIZES = {'a': 3000, 'b': 200}
CONTENT = {
  name: random.Random(size).randbytes(size) for name, size in SIZES.items()
}
MIB = 2**20
BOMB = 32 * MIB
# Of these xz has 8 MiB for its dictionary.
MOST = 12 * MIB


def tar(members, mode='w', **fields):
  """The bytes of a tar archive; `fields` are those of each entry."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name, data in members.items():
      entry = tarfile.TarInfo(f'directory/{name}')
      entry.size = len(data)
      for field, value in fields.items():
        setattr(entry, field, value)
      archive.addfile(entry, io.BytesIO(data))
  return buffer.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for name, data in members.items():
      archive.writestr(f'directory/{name}', data)
  return buffer.getvalue()


def compressed(members):
  return {f'{name}.gz': gzip.compress(data) for name, data in members.items()}


FORMATS = {
  'tar': tar,
  'tar.gz': lambda members: tar(members, 'w:gz'),
  'tar.bz2': lambda members: tar(members, 'w:bz2'),
  'tar.xz': lambda members: tar(members, 'w:xz'),
  'tar.lzma': lambda members: lzma.compress(tar(members), lzma.FORMAT_ALONE),
  'zip': zipped,
  'stored zip': lambda members: zipped(members, zipfile.ZIP_STORED),
  'tar of gz': lambda members: tar(compressed(members)),
  'tar.xz of gz': lambda members: tar(compressed(members), 'w:xz'),
  'zip of gz': lambda members: zipped(compressed(members)),
}


def unpack(data, sizes=SIZES):
  return unpacking.unpack_file(io.BytesIO(data), sizes)


class UnpackTest(parameterized.TestCase):
  @parameterized.parameters(*FORMATS)
  def test_whole_archives(self, name):
    found = unpack(FORMATS[name]({**CONTENT, 'other': b'x' * 9}))
    self.assertEqual(found, CONTENT)

  @parameterized.parameters(*FORMATS)
  def test_damage_anywhere_is_one_line_or_known_by_its_content(self, name):
    whole = FORMATS[name](CONTENT)
    rng = random.Random(0)
    refused = 0
    for turn in range(150):
      data = bytearray(whole)
      if turn % 3:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
      else:
        del data[rng.randrange(len(data)) :]
      try:
        found = unpack(bytes(data))
      except unpacking.UnpackError as error:
        self.assertNotIn('\n', str(error))
        refused += 1
        continue
      # A bit of a plain file has no sum here: the MD5 is looked at later.
      for member, content in found.items():
        self.assertLessEqual(len(content), SIZES[member])
    self.assertGreater(refused, 20)

  @parameterized.parameters(b'', b'PK', b'\x1f\x8b', b'BZh', b'<html>', b'\0')
  def test_other_bytes(self, start):
    for data in (start, start + bytes(3000), start + CONTENT['a']):
      try:
        found = unpack(data)
      except unpacking.UnpackError as error:
        self.assertNotIn('\n', str(error))
      else:
        self.assertEqual(found, {})  # zeros are a tar without files

  def test_a_pipe_is_none(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    os.mkfifo(root / 'pipe')
    with self.assertRaisesRegex(unpacking.UnpackError, 'no regular file'):
      unpacking.unpack(root / 'pipe', SIZES)
    os.mkfifo(root / 'a')
    (root / 'b').write_bytes(CONTENT['b'])
    self.assertEqual(unpacking.unpack(root, SIZES), {'b': CONTENT['b']})

  @parameterized.parameters(2**60, -1, -(2**60), 2**33)
  def test_a_size_that_a_header_only_promises(self, size):
    entry = tarfile.TarInfo('a')
    entry.size = size
    data = entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096)
    try:
      self.assertNotIn('b', unpack(data))
    except unpacking.UnpackError as error:
      self.assertNotIn('\n', str(error))

  @parameterized.parameters(
    (tarfile.SYMTYPE, '/etc/hostname'), (tarfile.LNKTYPE, '../../a'),
    (tarfile.CHRTYPE, ''), (tarfile.FIFOTYPE, ''),
  )  # fmt: skip
  def test_links_and_devices_are_not_followed(self, kind, target):
    data = tar({'a': b''}, type=kind, linkname=target)
    self.assertEqual(unpack(data), {})

  def test_paths_outside_are_names_only(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    before = sorted(root.parent.iterdir())
    for data in (tar({f'../../{root}/a': b'x'}), zipped({'../../a': b'x'})):
      self.assertEqual(unpack(data), {'a': b'x'})
    self.assertEqual(sorted(root.parent.iterdir()), before)

  def test_zip_with_a_password_or_another_method(self):
    data = bytearray(zipped(CONTENT))
    for start in (b'PK\3\4', b'PK\1\2'):
      place = data.index(start)
      data[place + (6 if start[2] == 3 else 8)] |= 1
    with self.assertRaisesRegex(unpacking.UnpackError, 'encrypted'):
      unpack(bytes(data))
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
      with self.assertRaisesRegex(unpacking.UnpackError, 'nor deflated'):
        unpack(zipped(CONTENT, method))
    unknown = zipped(CONTENT).replace(b'\x08\0', b'\x63\0')
    with self.assertRaises(unpacking.UnpackError):
      unpack(unknown)


class BombTest(parameterized.TestCase):
  """32 MiB of zeros where a file of 3000 bytes is wanted."""

  def peak(self, call, pattern):
    tracemalloc.start()
    try:
      with self.assertRaisesRegex(unpacking.UnpackError, pattern):
        call()
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(unpacking, 'SLACK', MIB))

  @parameterized.parameters('tar.gz', 'tar.bz2', 'tar.xz', 'zip', 'zip of gz')
  def test_is_not_read(self, name):
    data = FORMATS[name]({'a': bytes(BOMB)})
    self.assertLess(len(data), MIB)
    peak = self.peak(lambda: unpack(data), 'a(.gz)? has more than the 3000')
    self.assertLess(peak, MOST)

  @parameterized.parameters('gz', 'sparse')
  def test_is_not_read_in_a_directory(self, kind):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    if kind == 'gz':
      (root / 'a.gz').write_bytes(gzip.compress(bytes(BOMB)))
    else:
      (root / 'a').touch()
      os.truncate(root / 'a', 2**40)
    peak = self.peak(
      lambda: unpacking.unpack(root, SIZES), 'a(.gz)? has more than the 3000'
    )
    self.assertLess(peak, MOST)

  @parameterized.parameters(gzip, bz2, lzma)
  def test_is_not_read_as_a_name_or_another_file(self, module):
    name = tarfile.TarInfo('././@LongLink')
    name.size, name.type = BOMB, tarfile.GNUTYPE_LONGNAME
    head = name.tobuf(tarfile.GNU_FORMAT)
    other = tar({'other': bytes(BOMB), **CONTENT})
    for data in (head + bytes(BOMB), other):
      packed = module.compress(data)
      peak = self.peak(lambda: unpack(packed), 'unpacks to more than')  # noqa: B023
      self.assertLess(peak, MOST)

  def test_an_archive_larger_than_its_files(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    path = root / 'x.zip'
    path.write_bytes(zipped(CONTENT))
    os.truncate(path, 2**40)
    peak = self.peak(lambda: unpacking.unpack(path, SIZES), 'it has more than')
    self.assertLess(peak, MIB)

  def test_of_its_size_exactly_is_read(self):
    for size, fits in ((2999, False), (3000, True), (3001, True)):
      for name, make in FORMATS.items():
        with self.subTest(name):
          sizes = {**SIZES, 'a': size}
          if fits:
            self.assertEqual(unpack(make(CONTENT), sizes), CONTENT)
          else:
            with self.assertRaisesRegex(unpacking.UnpackError, 'more than'):
              unpack(make(CONTENT), sizes)


class SizesTest(absltest.TestCase):
  def test_are_those_of_the_official_files(self):
    mnist = archives.ARCHIVES['mnist'].sizes
    self.assertEqual(
      list(mnist.values()), [47_040_016, 60_008, 7_840_016, 10_008]
    )
    cifar10 = archives.ARCHIVES['cifar10'].sizes
    self.assertEqual(set(cifar10.values()), {30_730_000})
    for archive in archives.ARCHIVES.values():
      self.assertEqual(archive.sizes.keys(), archive.md5.keys())


if __name__ == '__main__':
  absltest.main()
