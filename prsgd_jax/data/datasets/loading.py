"""LOADING: `load_dataset` reads a prepared TFDS data set into NumPy arrays.

Decoding 60000 PNG images takes more than ten seconds, so decoded arrays are
cached beside the data set, in `<data_dir>/<name>/.prsgd_jax-<version>.npz`. The
cache is used only if its checksums are right and no file of the data set has
changed (names, sizes, times). It may be deleted at any time.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import secrets
import shlex
from typing import Any, NamedTuple
import zipfile

from absl import logging
import numpy as np

from prsgd_jax.data import pipelines, sources
from prsgd_jax.data.datasets import preparing, records, storage, texts
from prsgd_jax.data.datasets.storage import DatasetError
from prsgd_jax.tree_types import describe

# Our name -> the name of the TFDS builder.
_BUILDERS = {
  'cifar10': 'cifar10',
  'digits': 'optical_digits',
  'fashion_mnist': 'fashion_mnist',
  'mnist': 'mnist',
  'text': 'tiny_shakespeare',
}

DATASETS = tuple(_BUILDERS)
# Data sets shipped in the package, which are prepared if they are missing.
INSTALLED = ('digits', 'text')

_SEQUENCE_LENGTH = 64


class Dataset(NamedTuple):
  """Labeled images, or sequences of characters.

  Attributes:
    name: One of `DATASETS`.
    train: `{'image': uint8[n, h, w, c], 'label': int32[n]}`, or `{'text':
      uint8[n, length + 1]}` with indices into `texts.VOCABULARY`. If it is
      streamed, a source of such examples for `pr.pipeline`.
    test: The test split as arrays.
    num_classes: The number of labels or characters; they count from 0.
  """

  name: str
  train: Any
  test: dict[str, np.ndarray]
  num_classes: int

  @property
  def is_streamed(self) -> bool:
    """Whether the training examples are read during the run."""
    return not isinstance(self.train, Mapping)

  @property
  def num_examples(self) -> int:
    """Number of examples in the training split."""
    if self.is_streamed:
      return len(self.train)
    return len(next(iter(self.train.values())))

  def example(self) -> dict[str, np.ndarray]:
    """Return the first training example, arrays `[1, ...]`."""
    if self.is_streamed:
      return pipelines.pipeline(self.train, batch_size=1).example()
    return {name: x[:1] for name, x in self.train.items()}

  def __repr__(self) -> str:
    """Return sizes instead of the arrays, because a notebook prints them."""
    train = describe(self.train)
    if self.is_streamed:
      train = f'{self.num_examples} examples of {train}'
    splits = f'train={train}, test={describe(self.test)}'
    return f'Dataset({self.name}, {splits}, {self.num_classes} classes)'


def load_dataset(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  sequence_length: int | None = None,
  stream: bool = False,
) -> Dataset:
  """Read a data set from TFDS' data directory, without tensorflow or network.

  `digits` and `text` are prepared if they are missing, which takes about a
  second. Prepare the other data sets by `experiments/prepare_data.py`. Examples
  keep the order of the TFDS directory, and sequences the order of the text.

  Example:

    dataset = load_dataset('digits')
    dataset.train['image'].shape  # (1437, 8, 8, 1)

  Args:
    name: One of `DATASETS`.
    data_dir: TFDS' data directory. Default: `$TFDS_DATA_DIR`, or
      `~/tensorflow_datasets`.
    sequence_length: Characters predicted in a sequence, only for `text`; see
      `texts.cut`. Default: 64.
    stream: Whether to leave the training images on the disk: `train` is then a
      source for `pr.pipeline`. A text is in memory, because it is one record.
      Default: False.

  Returns:
    Both splits, complete.

  Raises:
    DatasetError: The name is unknown, the data set is missing, half-prepared or
      damaged, or it has no such sequences. The message names the remedy.
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
  if stream and name != 'text':
    with _naming(name, directory, root):
      test, num_classes, n = storage.read_test(directory)
    train = records.Records(directory, 'train', n)
    return Dataset(name, train, test, num_classes)
  dataset = _load(name, directory, root)
  if name != 'text':
    return dataset
  length = _SEQUENCE_LENGTH if sequence_length is None else sequence_length
  dataset = _cut(dataset, length)
  if stream:
    return dataset._replace(train=sources.Arrays(dataset.train))
  return dataset


def find_dataset(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """Return the prepared directory of a data set, None if there is none.

  The contents of the directory are not verified.

  Args:
    name: One of `DATASETS`.
    data_dir: TFDS' data directory.

  Raises:
    DatasetError: The name is unknown, or `data_dir` cannot be listed.
  """
  if name not in _BUILDERS:
    raise DatasetError(
      f'dataset must be one of {", ".join(DATASETS)}, got {name!r}'
    )
  return storage.find_prepared(_BUILDERS[name], data_dir)


def prepare_installed(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Make the TFDS directory of a data set that the package ships.

  Several processes may call this at once.

  Args:
    name: One of `INSTALLED`.
    data_dir: TFDS' data directory; created if missing.

  Returns:
    `<data_dir>/<builder>/<version>`.

  Raises:
    DatasetError: The directory cannot be written, or a package is missing.
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
  """Return the command that prepares a data set, for this directory."""
  script = pathlib.Path('experiments/prepare_data.py')
  # By module name outside of a clone, because only the package is there.
  program = str(script) if script.is_file() else '-m experiments.prepare_data'
  return (
    f'python {program} {shlex.quote(name)}'
    f' --data_dir={shlex.quote(str(data_dir))}'
  )


def _cut(dataset: Dataset, sequence_length: int) -> Dataset:
  """Cut whole texts of bytes into sequences of the vocabulary."""

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
  with _naming(name, directory, root):
    cache = directory.parent / f'.prsgd_jax-{directory.name}.npz'
    fingerprint = storage.fingerprint(directory)
    dataset = _read_cache(cache, name, fingerprint)
    if dataset is None:
      splits, num_classes = storage.read_prepared(directory)
      dataset = Dataset(name, splits['train'], splits['test'], num_classes)
      # Not cached if a file changed meanwhile, because the arrays are older.
      if storage.fingerprint(directory) == fingerprint:
        _write_cache(cache, dataset, fingerprint)
  return dataset


@contextlib.contextmanager
def _naming(
  name: str, directory: pathlib.Path, root: pathlib.Path
) -> Iterator[None]:
  """Add the data set and the remedy to errors of reading."""
  try:
    yield
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


def _keys(name: str) -> tuple[str, ...]:
  return ('text',) if name == 'text' else ('image', 'label')


def _read_cache(
  path: pathlib.Path, name: str, fingerprint: str
) -> Dataset | None:
  """Return the cached dataset, or None if it is absent, old or damaged."""
  try:
    with np.load(path, allow_pickle=False) as cache:
      if cache['fingerprint'].item() != fingerprint:
        return None
      # Because NumPy checks a CRC-32 only if it reads the member to its end,
      # which a damaged header may prevent.
      if bad := cache.zip.testzip():
        raise zipfile.BadZipFile(f'bad CRC-32 for {bad}')
      train, test = (
        {key: cache[f'{split}_{key}'] for key in _keys(name)}
        for split in storage.SPLITS
      )
      return Dataset(name, train, test, int(cache['num_classes']))
  except FileNotFoundError:
    return None
  # Any error, because NumPy, zipfile, zlib and struct raise many on damage.
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
