"""The official archives of image datasets, read by the standard library.

What they are called, where they are published, the MD5 sums of what is in them,
and how their formats (CIFAR's binary batches, MNIST's idx) become arrays.
"""

from collections.abc import Callable
import hashlib
import http.client
import io
import pathlib
from typing import Any, NamedTuple
import urllib.request

import numpy as np

from prsgd_jax.data.datasets import storage, unpacking
from prsgd_jax.data.datasets.storage import DatasetError

_TIMEOUT = 10.0  # seconds, to connect and between two pieces
_PIECE = 1 << 18  # bytes read from the network at a time


class Archive(NamedTuple):
  """An official archive.

  Attributes:
    base_url: The directory it is published in.
    files: What to fetch from there.
    md5: The published MD5 sum of each (uncompressed) file in it.
    sizes: The bytes of each of these files.
  """

  base_url: str
  files: tuple[str, ...]
  md5: dict[str, str]
  sizes: dict[str, int]


def _idx_archive(base_url: str, *md5: str) -> Archive:
  members = tuple(
    f'{split}-{kind}-ubyte'
    for split in ('train', 't10k')
    for kind in ('images-idx3', 'labels-idx1')
  )
  # A header, then a byte for each pixel or label.
  sizes = [
    header + num_examples * values
    for num_examples in (60_000, 10_000)
    for header, values in ((16, 28 * 28), (8, 1))
  ]
  return Archive(
    base_url,
    tuple(f'{m}.gz' for m in members),
    dict(zip(members, md5)),
    dict(zip(members, sizes)),
  )


_CIFAR10_MD5 = {
  'data_batch_1.bin': '5dd7e06a14cb22eb9f671a540d1b7c25',
  'data_batch_2.bin': '5ea93a67294ea407fff1d09f752e9692',
  'data_batch_3.bin': '942cd6a4bcdd0dd3c604fbe906cb4421',
  'data_batch_4.bin': 'ae636b3ba5c66a11e91e8cb52e771fcb',
  'data_batch_5.bin': '53f37980c15c3d472c316c40844f3f0d',
  'test_batch.bin': '803d5f7f4d78ea53de84dbe85f74fb6d',
}


ARCHIVES = {
  'cifar10': Archive(
    'https://www.cs.toronto.edu/~kriz/',
    ('cifar-10-binary.tar.gz',),
    _CIFAR10_MD5,
    dict.fromkeys(_CIFAR10_MD5, 10_000 * (1 + 3 * 32 * 32)),
  ),
  'fashion_mnist': _idx_archive(
    'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
    'f4a8712d7a061bf5bd6d2ca38dc4d50a',
    '9018921c3c673c538a1fc5bad174d6f9',
    '8181f5470baa50b63fa0f6fddb340f0a',
    '15d484375f8d13e6eb1aabb0c3f46965',
  ),
  'mnist': _idx_archive(
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    '6bbc9ace898e44ae57da46a324031adb',
    'a25bea736e30d166cdddb491f175f624',
    '2646ac647ad5339dbf082846283269ea',
    '27ae3e4e09519cfbb04c329615203637',
  ),
}


def read_archive(name: str, path: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of an archive that lies on this machine.

  Args:
    name: A key of `ARCHIVES`.
    path: A tar (of any compression) or zip archive of the files, or a directory
      holding them. Each may be compressed by gzip. No more is read of a file
      than the official one has.

  Raises:
    DatasetError: There is none, it is damaged, or it lacks a file.
  """
  if not path.exists():
    raise DatasetError(f'there is no archive {path}; {how_to_fetch(name)}')
  try:
    members = unpacking.unpack(path, ARCHIVES[name].sizes)
  except PermissionError as error:
    raise DatasetError(
      f'cannot read {path}: Permission denied; make it readable'
    ) from error
  except (OSError, unpacking.UnpackError) as error:
    raise DatasetError(
      f'{path} is damaged, cut short, or neither a tar nor a zip archive'
      f' ({storage.one_line(error)}); {how_to_fetch(name)}'
    ) from error
  return _complete(name, members, str(path))


def download_archive(
  name: str, progress: Callable[..., Any]
) -> dict[str, bytes]:
  """Returns the files of an archive, fetched from where it is published.

  Args:
    name: A key of `ARCHIVES`.
    progress: As `tqdm.tqdm`: makes a progress bar.

  Raises:
    DatasetError: It cannot be fetched, or what came is damaged.
  """
  archive = ARCHIVES[name]
  members: dict[str, bytes] = {}
  for file in archive.files:
    url = archive.base_url + file
    try:
      data = io.BytesIO(_download(url, archive, progress))
      if file.endswith('.tar.gz'):
        members |= unpacking.unpack_file(data, archive.sizes)
      else:
        member = file.removesuffix('.gz')
        size = archive.sizes[member]
        members[member] = unpacking.content(data, file, size)
    # A Content-Length that is no number is a ValueError.
    except (
      OSError, ValueError, http.client.HTTPException, unpacking.UnpackError
    ) as error:  # fmt: skip
      reason = storage.one_line(getattr(error, 'reason', None) or error)
      raise DatasetError(
        f'cannot download {url} ({reason}); {how_to_fetch(name)}'
      ) from error
  return _complete(name, members, archive.base_url)


def wrong_sums(name: str, members: dict[str, bytes]) -> list[str]:
  """Returns the files whose MD5 sum is not the published one."""
  return [
    member
    for member, md5 in ARCHIVES[name].md5.items()
    if _md5(members[member]) != md5
  ]


def decode(name: str, members: dict[str, bytes]) -> dict[str, storage.Split]:
  """Returns the splits that the files of an archive hold.

  Returns:
    `train` and `test`, each `{'image': uint8[n, h, w, c], 'label': int32[n]}`.

  Raises:
    DatasetError: The files are not in the archive's format.
  """
  if name == 'cifar10':
    train = [member for member in members if member.startswith('data_batch')]
    splits = {
      'train': _decode_cifar([(m, members[m]) for m in sorted(train)]),
      'test': _decode_cifar([('test_batch.bin', members['test_batch.bin'])]),
    }
  else:
    splits = {
      'train': _decode_idx(members, 'train'),
      'test': _decode_idx(members, 't10k'),
    }
  for split, arrays in splits.items():
    if arrays['label'].size == 0:
      raise DatasetError(
        f'split {split} of {name} must have examples, got none;'
        f' {how_to_fetch(name)}'
      )
    if arrays['label'].max() > 9:
      raise DatasetError(
        f'labels of {name} must be in 0..9, got {arrays["label"].max()} in'
        f' split {split}; {how_to_fetch(name)}'
      )
  return splits


def how_to_fetch(name: str) -> str:
  """Returns what to do to have the archive at hand."""
  archive = ARCHIVES[name]
  if len(archive.files) == 1:
    return (
      f'fetch {archive.base_url}{archive.files[0]} by hand and pass'
      ' --from_archive=PATH'
    )
  return (
    f'fetch {", ".join(archive.files)} from {archive.base_url} by hand into a'
    ' directory and pass --from_archive=DIRECTORY'
  )


def _md5(data: bytes) -> str:
  return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _complete(
  name: str, members: dict[str, bytes], where: str
) -> dict[str, bytes]:
  """Returns the files in the order of the archive.

  Raises:
    DatasetError: One is missing.
  """
  for member in ARCHIVES[name].md5:
    if member not in members:
      raise DatasetError(
        f'{where} lacks {member}: it is not the archive of {name};'
        f' {how_to_fetch(name)}'
      )
  return {member: members[member] for member in ARCHIVES[name].md5}


def _download(
  url: str, archive: Archive, progress: Callable[..., Any]
) -> bytes:
  data = io.BytesIO()
  limit = sum(archive.sizes.values()) + unpacking.SLACK
  with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
    size = int(response.headers.get('Content-Length') or 0) or None
    title = url.rsplit('/', 1)[-1]
    # disable=None: no bar where stderr is not a terminal.
    with progress(
      total=size, desc=title, unit='B', unit_scale=True, disable=None
    ) as bar:
      while piece := response.read(_PIECE):
        data.write(piece)
        bar.update(len(piece))
        if data.tell() > limit:
          raise OSError(f'more than {limit} bytes came')
  if size and data.tell() != size:
    raise OSError(f'{data.tell()} of {size} bytes came')
  return data.getvalue()


def _decode_cifar(batches: list[tuple[str, bytes]]) -> storage.Split:
  record = 1 + 3 * 32 * 32  # a label, then three planes
  for member, data in batches:
    if len(data) % record:
      raise DatasetError(
        f'{member} must have a multiple of {record} bytes, got {len(data)};'
        f' {how_to_fetch("cifar10")}'
      )
  rows = np.frombuffer(b''.join(d for _, d in batches), np.uint8)
  rows = rows.reshape(-1, record)
  planes = rows[:, 1:].reshape(-1, 3, 32, 32)
  return {
    'image': np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
    'label': rows[:, 0].astype(np.int32),
  }


def _decode_idx(members: dict[str, bytes], prefix: str) -> storage.Split:
  image = _idx_array(members, f'{prefix}-images-idx3-ubyte')
  label = _idx_array(members, f'{prefix}-labels-idx1-ubyte')
  if image.shape != (len(label), 28, 28):
    raise DatasetError(
      f'{prefix}-images-idx3-ubyte must hold [{len(label)}, 28, 28] for as many'
      f' labels, got {list(image.shape)}; pass the files of one archive'
    )
  return {'image': image[..., np.newaxis], 'label': label.astype(np.int32)}


def _idx_array(members: dict[str, bytes], member: str) -> np.ndarray:
  """Reads idx: two zeros, type (8: uint8), rank, the sizes, the values."""
  data = members[member]
  rank = 3 if 'idx3' in member else 1
  start = 4 + 4 * rank
  if len(data) >= start and data[:4] == bytes([0, 0, 8, rank]):
    shape = np.frombuffer(data[4:start], '>u4').tolist()
    if np.prod(shape, dtype=object) == len(data) - start:
      return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
  raise DatasetError(
    f'{member} must be an idx file of uint8 with {rank} dimensions, got other'
    f' bytes, or too few ({len(data)}); pass the official files'
  )
