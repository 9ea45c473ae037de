"""ARCHIVES: the official files of image data sets, as arrays.

`download` fetches them by pooch, and `read` decodes downloaded or given files.
A file is unpacked only if it has the published checksum, because an unknown
archive can unpack to anything. The decoders check nothing, because all their
bytes are then known.
"""

import gzip
import pathlib
import sys
import tarfile
from typing import Any, NamedTuple

import numpy as np

from prsgd_jax.data.datasets import storage
from prsgd_jax.data.datasets.storage import DatasetError

_TIMEOUT = 10.0  # seconds, to connect and between two pieces
_PIECE = 1 << 18  # bytes read from the network at a time


class Archive(NamedTuple):
  """An official archive.

  Attributes:
    base_url: URL of the directory that publishes it.
    packed: Published file -> its SHA-256 sum.
    plain: File inside the published files -> its published MD5 sum.
  """

  base_url: str
  packed: dict[str, str]
  plain: dict[str, str]


def _idx_archive(base_url: str, packed: list[str], plain: list[str]) -> Archive:
  names = [
    f'{split}-{kind}-ubyte'
    for split in ('train', 't10k')
    for kind in ('images-idx3', 'labels-idx1')
  ]
  return Archive(
    base_url,
    dict(zip([f'{name}.gz' for name in names], packed)),
    dict(zip(names, plain)),
  )


ARCHIVES = {
  'cifar10': Archive(
    'https://www.cs.toronto.edu/~kriz/',
    {
      'cifar-10-binary.tar.gz': (
        'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
      )
    },
    {
      'data_batch_1.bin': '5dd7e06a14cb22eb9f671a540d1b7c25',
      'data_batch_2.bin': '5ea93a67294ea407fff1d09f752e9692',
      'data_batch_3.bin': '942cd6a4bcdd0dd3c604fbe906cb4421',
      'data_batch_4.bin': 'ae636b3ba5c66a11e91e8cb52e771fcb',
      'data_batch_5.bin': '53f37980c15c3d472c316c40844f3f0d',
      'test_batch.bin': '803d5f7f4d78ea53de84dbe85f74fb6d',
    },
  ),
  'fashion_mnist': _idx_archive(
    'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
    [
      '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84',
      'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845',
      '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073',
      '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5',
    ],
    [
      'f4a8712d7a061bf5bd6d2ca38dc4d50a',
      '9018921c3c673c538a1fc5bad174d6f9',
      '8181f5470baa50b63fa0f6fddb340f0a',
      '15d484375f8d13e6eb1aabb0c3f46965',
    ],
  ),
  'mnist': _idx_archive(
    'https://storage.googleapis.com/cvdf-datasets/mnist/',
    [
      '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
      '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
      '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
      'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
    ],
    [
      '6bbc9ace898e44ae57da46a324031adb',
      'a25bea736e30d166cdddb491f175f624',
      '2646ac647ad5339dbf082846283269ea',
      '27ae3e4e09519cfbb04c329615203637',
    ],
  ),
}


def download(name: str, directory: pathlib.Path) -> pathlib.Path:
  """Download an archive, unless its files are there already.

  Args:
    name: A key of `ARCHIVES`.
    directory: The directory that keeps downloads.

  Returns:
    The directory of the files, `<directory>/<name>`.

  Raises:
    DatasetError: A file cannot be downloaded, or differs from the published
      one.
  """
  pooch = _import_pooch()
  archive, path = ARCHIVES[name], directory / name
  for file, sha256 in archive.packed.items():
    url = archive.base_url + file
    downloader = pooch.HTTPDownloader(
      progressbar=sys.stderr.isatty(), chunk_size=_PIECE, timeout=_TIMEOUT
    )
    try:
      pooch.retrieve(url, sha256, file, path, downloader=downloader)
    # pooch raises ValueError for a wrong checksum.
    except (OSError, ValueError) as error:
      raise DatasetError(
        f'cannot download {url} ({storage.one_line(_root_cause(error))});'
        f' {how_to_fetch(name)}'
      ) from error
  return path


def read(name: str, path: pathlib.Path) -> dict[str, storage.Split]:
  """Decode the splits in the files of an archive.

  Args:
    name: A key of `ARCHIVES`.
    path: The directory of the published files, or of the files inside them; or
      the published file, if it is the only one.

  Returns:
    `train` and `test`, each `{'image': uint8[n, h, w, c], 'label': int32[n]}`.

  Raises:
    DatasetError: A file is missing or differs from the published one.
  """
  try:
    plain = _read_plain(name, path)
  except OSError as error:
    raise DatasetError(
      f'cannot read {error.filename or path}: {storage.one_line(error)}; make'
      ' it readable'
    ) from error
  if name == 'cifar10':
    batches = sorted(file for file in plain if file.startswith('data_batch'))
    return {
      'train': _decode_cifar([plain[file] for file in batches]),
      'test': _decode_cifar([plain['test_batch.bin']]),
    }
  return {
    'train': _decode_idx(plain, 'train'), 'test': _decode_idx(plain, 't10k')
  }  # fmt: skip


def how_to_fetch(name: str) -> str:
  """Return how to prepare a data set from its official files, one line."""
  base_url, packed, _ = ARCHIVES[name]
  what, where = ', '.join(packed), 'FILE' if len(packed) == 1 else 'DIRECTORY'
  return (
    f'fetch {what} from {base_url} or a mirror, and pass --from_archive={where}'
  )


def _read_plain(name: str, path: pathlib.Path) -> dict[str, bytes]:
  """Return the files in an archive, after verifying their checksums."""
  _, packed, plain = ARCHIVES[name]
  if not path.exists():
    raise DatasetError(f'there is no archive {path}; {how_to_fetch(name)}')
  found: dict[str, bytes] = {}
  for file, sha256 in packed.items():
    source = path if path.is_file() else path / file
    if source.is_file():
      _check_sum(name, source, 'sha256', sha256)
      found |= _unpack(source, file)
  for file in [file for file in plain if file not in found]:
    if not (path / file).is_file():
      raise DatasetError(
        f'{path} lacks {file}, packed or not; {how_to_fetch(name)}'
      )
    _check_sum(name, path / file, 'md5', plain[file])
    found[file] = (path / file).read_bytes()
  return found


def _check_sum(name: str, path: pathlib.Path, kind: str, known: str) -> None:
  if _import_pooch().file_hash(str(path), kind) != known:
    raise DatasetError(
      f'{path} does not have the published {kind} sum; {how_to_fetch(name)}. If'
      ' you packed it again, unpack it and pass the directory of'
      f' {", ".join(ARCHIVES[name].plain)}. If the data are your own, train on'
      ' them by --dataset=MODULE:NAME'
    )


def _unpack(path: pathlib.Path, file: str) -> dict[str, bytes]:
  """Unpack one published file, whose official name is `file`."""
  if not file.endswith('.tar.gz'):
    return {file.removesuffix('.gz'): gzip.decompress(path.read_bytes())}
  found = {}
  with tarfile.open(path) as tar:
    for entry in tar:
      if content := tar.extractfile(entry):  # None for a directory
        found[pathlib.PurePath(entry.name).name] = content.read()
  return found


def _import_pooch() -> Any:
  try:
    import pooch
  except ImportError as error:
    raise DatasetError(
      f'archives need pooch ({storage.one_line(error)}); run: pip install pooch'
    ) from error
  pooch.get_logger().setLevel('WARNING')  # it announces each download
  return pooch


def _root_cause(error: BaseException) -> BaseException:
  """Return the first error of a chain, because requests wraps it 3 times."""
  while cause := error.__cause__ or error.__context__:
    error = cause
  return error


def _decode_cifar(batches: list[bytes]) -> storage.Split:
  # A record is a label, then a plane for each color.
  rows = np.frombuffer(b''.join(batches), np.uint8).reshape(-1, 1 + 3 * 32**2)
  planes = rows[:, 1:].reshape(-1, 3, 32, 32)
  return {
    'image': np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
    'label': rows[:, 0].astype(np.int32),
  }


def _decode_idx(plain: dict[str, bytes], split: str) -> storage.Split:
  # Headers hold a magic number and the sizes, 4 bytes each.
  image, label = (
    np.frombuffer(plain[f'{split}-{kind}-ubyte'], np.uint8, offset=header)
    for kind, header in (('images-idx3', 16), ('labels-idx1', 8))
  )
  return {
    'image': image.reshape(-1, 28, 28, 1), 'label': label.astype(np.int32)
  }  # fmt: skip
