"""`load_dataset`: a prepared TFDS dataset as NumPy arrays in memory.

Decoding 60000 PNG images takes ten seconds and more, so what was read is kept
beside the dataset: `<data_dir>/<name>/.prsgd_jax-<version>.npz`. That file is
used only if it is whole (every array in it carries a checksum) and no file of
the dataset was touched since (names, sizes, times). Delete it at any time.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shlex
from typing import Any, NamedTuple
import zipfile

from absl import logging
import numpy as np

from prsgd_jax.data.datasets import preparing, storage, texts
from prsgd_jax.data.datasets.storage import DatasetError

# Our name -> the name of the TFDS builder.
_BUILDERS = {
  'cifar10': 'cifar10',
  'digits': 'optical_digits',
  'fashion_mnist': 'fashion_mnist',
  'mnist': 'mnist',
  'text': 'tiny_shakespeare',
}

DATASETS = tuple(_BUILDERS)
# Those whose contents are installed with the packages: prepared when missing.
INSTALLED = ('digits', 'text')

_SEQUENCE_LENGTH = 64

_CACHE_FORMAT = 1


class Dataset(NamedTuple):
  """Labelled images, or sequences of characters, in memory.

  Attributes:
    name: One of `DATASETS`.
    train: `{'image': uint8[n, h, w, c], 'label': int32[n]}`, or `{'text':
      uint8[n, length + 1]}`, characters as their places in `texts.VOCABULARY`.
    test: The same for the test split.
    num_classes: Labels, or characters, are in 0..num_classes - 1.
  """

  name: str
  train: dict[str, np.ndarray]
  test: dict[str, np.ndarray]
  num_classes: int

  @property
  def num_examples(self) -> int:
    """Of the training split."""
    return len(next(iter(self.train.values())))


def load_dataset(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  sequence_length: int | None = None,
) -> Dataset:
  """Reads a dataset from TFDS' data directory, without tensorflow or network.

  `digits` and `text` are prepared when they are missing, in about a second; the
  others by `experiments/prepare_data.py`. The order of the examples is that of
  the TFDS directory; that of the sequences of a text is the text's.

  Example:

    dataset = load_dataset('digits')
    dataset.train['image'].shape  # (1437, 8, 8, 1)

  Args:
    name: One of `DATASETS`.
    data_dir: TFDS' data directory; by default `$TFDS_DATA_DIR`, or
      `~/tensorflow_datasets`.
    sequence_length: Of a text: how many characters of a sequence are predicted,
      by default 64 (see `texts.cut`). For `text` alone.

  Returns:
    Both splits, whole.

  Raises:
    DatasetError: The name is unknown, or the dataset is missing, half-prepared
      or damaged, or does not have such sequences; the message says what to do.
  """
  root = storage.resolve_data_dir(data_dir)
  directory = find_dataset(name, root)
  if name != 'text' and sequence_length is not None:
    raise DatasetError(
      f'{name} has no sequences of text; leave out sequence_length'
    )
  if directory is None and name in INSTALLED:
    directory = prepare_installed(name, root)
  if directory is None:
    raise DatasetError(
      f'{name} is not prepared in {root}; run: {prepare_command(name, root)}'
    )
  dataset = _load(name, directory, root)
  if name == 'text':
    length = _SEQUENCE_LENGTH if sequence_length is None else sequence_length
    return _cut(dataset, length)
  return dataset


def find_dataset(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """Returns the prepared directory of a dataset, which may be damaged.

  Raises:
    DatasetError: The name is unknown, or `data_dir` cannot be listed.
  """
  if name not in _BUILDERS:
    raise DatasetError(
      f'dataset must be one of {", ".join(DATASETS)}, got {name!r}'
    )
  return storage.find_prepared(_BUILDERS[name], data_dir)


def prepare_installed(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Makes the TFDS directory of one of `INSTALLED`; processes may race for it.

  Raises:
    DatasetError: It cannot be written, or a package is missing.
  """
  storage.import_tfds()
  from prsgd_jax.data.datasets import optical_digits, stock_builders

  if name == 'text':
    splits = texts.shakespeare_splits()
    builder = stock_builders.make_builder(name, splits)
  else:
    splits = optical_digits.digits_splits()
    builder = optical_digits.OpticalDigits
  return preparing.prepare(builder, data_dir)


def prepare_command(name: str, data_dir: pathlib.Path) -> str:
  """Returns what to type to prepare a dataset, in this directory."""
  script = pathlib.Path('experiments/prepare_data.py')
  # Outside of a clone the installed module is what is there.
  program = str(script) if script.is_file() else '-m experiments.prepare_data'
  return (
    f'python {program} {shlex.quote(name)}'
    f' --data_dir={shlex.quote(str(data_dir))}'
  )


def _cut(dataset: Dataset, sequence_length: int) -> Dataset:
  """Of whole texts of bytes, sequences in the vocabulary."""

  def sequences(split: storage.Split) -> storage.Split:
    text = split['text'].tobytes().decode('latin-1')
    return {'text': texts.cut(texts.encode(text), sequence_length)}

  return Dataset(
    dataset.name,
    sequences(dataset.train),
    sequences(dataset.test),
    len(texts.VOCABULARY),
  )


def _load(name: str, directory: pathlib.Path, root: pathlib.Path) -> Dataset:
  try:
    cache = directory.parent / f'.prsgd_jax-{directory.name}.npz'
    fingerprint = _fingerprint(directory)
    dataset = _read_cache(cache, name, fingerprint)
    if dataset is None:
      splits, num_classes = storage.read_prepared(directory)
      dataset = Dataset(name, splits['train'], splits['test'], num_classes)
      # Files that changed meanwhile must not be filed under the new state.
      if _fingerprint(directory) == fingerprint:
        _write_cache(cache, dataset, fingerprint)
  except storage.DamagedError as error:
    raise DatasetError(
      f'{name} in {directory} cannot be used: {error}; move that directory'
      f' away and run: {prepare_command(name, root)}'
    ) from error
  except OSError as error:
    raise DatasetError(
      f'cannot read {directory}: {storage.one_line(error)}; pass a data_dir'
      ' that can be read'
    ) from error
  return dataset


def _keys(name: str) -> tuple[str, ...]:
  return ('text',) if name == 'text' else ('image', 'label')


def _fingerprint(directory: pathlib.Path) -> str:
  """Returns what changes whenever a file of the dataset does."""
  files = []
  for path in sorted(directory.iterdir()):
    stat = path.stat()
    # The change time tells a file from another one copied over it with its
    # modification time.
    files.append([path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
  return json.dumps([_CACHE_FORMAT, files])


def _read_cache(
  path: pathlib.Path, name: str, fingerprint: str
) -> Dataset | None:
  """Returns the cached dataset, or None if it is absent, old or damaged."""
  try:
    with np.load(path, allow_pickle=False) as cache:
      if cache['fingerprint'].item() != fingerprint:
        return None
      # NumPy checks a member's CRC-32 only if its header, which may be what is
      # damaged, makes it read that member to the end.
      if bad := cache.zip.testzip():
        raise zipfile.BadZipFile(f'bad CRC-32 for {bad}')
      train, test = (
        {key: cache[f'{split}_{key}'] for key in _keys(name)}
        for split in storage.SPLITS
      )
      return Dataset(name, train, test, int(cache['num_classes']))
  except FileNotFoundError:
    return None
  # NumPy, zipfile, zlib and struct raise nearly anything on damaged bytes.
  except Exception as error:
    logging.warning(
      '%s is damaged (%s): reading the dataset itself',
      path,
      storage.one_line(error),
    )
    return None


def _write_cache(
  path: pathlib.Path, dataset: Dataset, fingerprint: str
) -> None:
  arrays: dict[str, Any] = {
    f'{split}_{key}': getattr(dataset, split)[key]
    for split in storage.SPLITS
    for key in _keys(dataset.name)
  }
  temporary = path.with_name(f'{path.name}.{secrets.token_hex(8)}')
  try:
    with temporary.open('xb') as file:
      np.savez(
        file,
        fingerprint=np.array(fingerprint),
        num_classes=np.array(dataset.num_classes),
        **arrays,
      )
    os.replace(temporary, path)
  except OSError as error:
    logging.warning(
      'cannot write %s (%s): %s will be decoded again next time',
      path,
      storage.one_line(error),
      dataset.name,
    )
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
