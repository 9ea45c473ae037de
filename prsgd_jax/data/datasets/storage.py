"""STORAGE: finds and reads prepared TFDS directories.

This module never uses the network or imports tensorflow. It imports
`tensorflow_datasets` only when it reads a directory, because that is slow.
"""

from collections.abc import Iterator
import contextlib
import gzip
import hashlib
import importlib.resources
import json
import logging
import os
import pathlib
import re
from typing import Any

from absl import logging as absl_logging
import numpy as np

Split = dict[str, np.ndarray]

SPLITS = ('train', 'test')
_CACHE_FORMAT = 1
_KINDS = ({'image', 'label'}, {'text'})
_METADATA = ('dataset_info.json', 'features.json')


class DatasetError(ValueError):
  """A data set is not available; one line on why, and on what to type."""


class DamagedError(Exception):
  """A prepared directory does not match its metadata; the reason."""


def resolve_data_dir(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  """Return `data_dir`, or TFDS' own default, as an absolute path.

  Args:
    data_dir: TFDS' data directory; None for `$TFDS_DATA_DIR`, or
      `~/tensorflow_datasets`.

  Raises:
    DatasetError: `data_dir` is a URL, or its home directory is unknown.
  """
  # Read here, because TFDS reads the variable only once, when it is imported.
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  data_dir = os.fspath(data_dir or default)
  if '://' in data_dir:
    raise DatasetError(
      f'data_dir must be a local directory, got {data_dir}; copy the dataset'
      ' to a local directory and pass that'
    )
  return expand(data_dir, 'data_dir, as --data_dir=DIRECTORY').absolute()


def expand(path: str, instead: str) -> pathlib.Path:
  """Return a path whose leading `~` or `~user` is the home directory.

  Args:
    path: The path that the user passed.
    instead: The argument to pass otherwise, for the message.

  Raises:
    DatasetError: The home directory is unknown: no such user, or HOME is not
      set and the user id of the process has no entry, as in some containers.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise DatasetError(
      f'the home directory of {path} is unknown; pass another {instead}'
    ) from error


def find_prepared(
  builder_name: str, data_dir: pathlib.Path
) -> pathlib.Path | None:
  """Return the directory of the newest version, None if there is none.

  The contents of the directory are not verified.

  Args:
    builder_name: The name of the TFDS builder.
    data_dir: TFDS' data directory.

  Raises:
    DatasetError: `data_dir` cannot be listed.
  """
  parent = data_dir / builder_name
  try:
    names = os.listdir(parent)
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as error:
    raise DatasetError(
      f'cannot read {parent}: {one_line(error)}; pass a data_dir that can be'
      ' read'
    ) from error
  # Only full matches, because TFDS builds in `incomplete.*_<version>`.
  versions = [n for n in names if re.fullmatch(r'\d+\.\d+\.\d+', n)]
  if not versions:
    return None
  return parent / max(versions, key=lambda v: [int(x) for x in v.split('.')])


def read_prepared(directory: pathlib.Path) -> tuple[dict[str, Split], int]:
  """Read a whole prepared data set, images or one text, into memory.

  Args:
    directory: `<data_dir>/<name>/<version>`.

  Returns:
    A pair: split name -> `{'image': uint8[n, h, w, c], 'label': int32[n]}`, and
    the number of classes. For a text: split name -> `{'text': uint8[1, n]}`,
    one example of n bytes, and 256.

  Raises:
    DamagedError: The directory is half-prepared, damaged, of another file
      format, or holds neither labeled images nor a text.
    DatasetError: A file cannot be read, or a package is missing.
  """
  with _as_damaged():
    builder = open_builder(directory)
    if 'text' in builder.info.features:
      return {s: _read_text(builder, s) for s in SPLITS}, 256
    num_classes = builder.info.features['label'].num_classes
    return {
      s: _read_split(builder, s, num_classes) for s in SPLITS
    }, num_classes


def read_test(directory: pathlib.Path) -> tuple[Split, int, int]:
  """Read the test split of a prepared data set of images into memory.

  Args:
    directory: `<data_dir>/<name>/<version>`.

  Returns:
    `{'image': uint8[n, h, w, c], 'label': int32[n]}`, the number of classes,
    and the number of training examples.

  Raises:
    DamagedError: as in `read_prepared`.
    DatasetError: as in `read_prepared`.
  """
  with _as_damaged():
    builder = open_builder(directory)
    num_classes = builder.info.features['label'].num_classes
    test = _read_split(builder, 'test', num_classes)
    return test, num_classes, builder.info.splits['train'].num_examples


def open_builder(directory: pathlib.Path) -> Any:
  """Return the TFDS builder of a prepared directory, after checking it.

  Args:
    directory: `<data_dir>/<name>/<version>`.

  Raises:
    DamagedError: the directory is half-prepared, of another file format, or
      holds neither labeled images nor a text.
    DatasetError: a file cannot be read, or a package is missing.
  """
  for name in _METADATA:
    if not (directory / name).is_file():
      raise DamagedError(f'it has no {name}')
  _check_readable(directory)
  tfds = import_tfds()
  with without_tfds_logs():
    builder = tfds.builder_from_directory(directory)
  _check_info(builder.info)
  return builder


@contextlib.contextmanager
def _as_damaged() -> Iterator[None]:
  """Raise errors of reading as DamagedError, without messages of TFDS.

  Any error, because what TFDS, protobuf, array_record and PIL raise for damaged
  files has no common class and is not documented.
  """
  try:
    with without_tfds_logs():
      yield
  except (DamagedError, DatasetError, MemoryError):
    raise
  except Exception as error:
    raise DamagedError(one_line(error)) from error


def fingerprint(directory: pathlib.Path) -> str:
  """Return a text that changes whenever a file of the data set does.

  Args:
    directory: `<data_dir>/<name>/<version>`.
  """
  files = []
  for path in sorted(directory.iterdir()):
    stat = path.stat()
    # With the change time, because a copy may keep the modification time.
    files.append([path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
  return json.dumps([_CACHE_FORMAT, files])


def read_embedded(name: str, sha256: str) -> bytes:
  """Return the contents of a gzip file of this package.

  Args:
    name: The name of the file.
    sha256: The SHA-256 sum of the contents.

  Raises:
    DatasetError: The file is missing or damaged.
  """
  file = importlib.resources.files(__package__) / name
  try:
    contents = gzip.decompress(file.read_bytes())
    if hashlib.sha256(contents).hexdigest() != sha256:
      raise ValueError('it has another SHA-256 sum')
  # Any error, because gzip and zlib raise several on damaged bytes.
  except Exception as error:
    raise DatasetError(
      f'{name} of the package cannot be read ({one_line(error)}); install'
      ' prsgd_jax again'
    ) from error
  return contents


def one_line(error: BaseException) -> str:
  """Return the message of an exception on one short line."""
  text = getattr(error, 'strerror', None) or str(error)
  text = ' '.join(str(text).split()) or type(error).__name__
  return text if len(text) <= 160 else text[:157] + '...'


def import_tfds() -> Any:
  """Return `tensorflow_datasets`, with the packages it needs for images.

  Raises:
    DatasetError: A package is missing.
  """
  try:
    # Imported here, because TFDS imports these two only when it decodes.
    from array_record.python import array_record_data_source  # noqa: F401
    from PIL import Image  # noqa: F401
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise DatasetError(
      f'datasets need a package that cannot be imported ({one_line(error)});'
      ' run: pip install tensorflow-datasets array_record importlib_resources'
      ' pillow'
    ) from error
  return tfds


def _check_readable(directory: pathlib.Path) -> None:
  # Because array_record reports a file without permission as damaged.
  for path in sorted(directory.iterdir()):
    if path.is_file() and not os.access(path, os.R_OK):
      raise DatasetError(
        f'cannot read {path}: Permission denied; run: chmod +r {path}'
      )


def _check_info(info: Any) -> None:
  file_format = info.file_format.value if info.file_format else None
  if file_format != 'array_record':
    raise DamagedError(
      f'its file format is {file_format}, which needs tensorflow, not'
      ' array_record'
    )
  if not any(kind <= set(info.features) for kind in _KINDS):
    raise DamagedError(
      f'it holds {sorted(info.features)}, not images with labels, or text'
    )
  for split in SPLITS:
    if split not in info.splits or not info.splits[split].num_examples:
      raise DamagedError(f'its split {split} is missing or empty')


def _read_split(builder: Any, split: str, num_classes: int) -> Split:
  source = builder.as_data_source(split)
  # In one call, because it takes half the time of a loop over `source`.
  examples = source.__getitems__(range(len(source)))
  image = np.stack([example['image'] for example in examples])
  label = np.array([example['label'] for example in examples], np.int32)
  shape = builder.info.features['image'].shape
  if image.dtype != np.uint8 or image.ndim != 4 or image.shape[1:] != shape:
    raise DamagedError(
      f'its images are {image.dtype}{list(image.shape)}, not uint8[n, h, w, c]'
      f' with the [h, w, c] of the metadata, {list(shape)}'
    )
  if label.shape != (len(image),) or not np.all(
    (label >= 0) & (label < num_classes)
  ):
    raise DamagedError(f'its labels are not one of 0..{num_classes - 1} each')
  return {'image': image, 'label': label}


def _read_text(builder: Any, split: str) -> Split:
  source = builder.as_data_source(split)
  if len(source) != 1:
    raise DamagedError(f'its split {split} has {len(source)} texts, not one')
  return {'text': np.frombuffer(source[0]['text'], np.uint8)[np.newaxis]}


@contextlib.contextmanager
def without_tfds_logs() -> Iterator[None]:
  """Drop messages of TFDS, and no other, from absl's logger."""
  inside = f'{os.sep}tensorflow_datasets{os.sep}'

  def keep(record: logging.LogRecord) -> bool:
    return inside not in record.pathname

  logger = absl_logging.get_absl_logger()
  logger.addFilter(keep)
  try:
    yield
  finally:
    logger.removeFilter(keep)
