"""Flags that select the data of a run: a dataset, a text file, or your own."""

from collections.abc import Mapping
import difflib
import os
import pathlib

from absl import flags
import numpy as np

from experiments.running.flags import dotted, own_data
from experiments.running.flags.run_config import RunConfig
from prsgd_jax.data import sources
from prsgd_jax.data.datasets import DATASETS, Dataset, load_dataset, texts
from prsgd_jax.data.datasets.loading import INSTALLED

# The dataset that language models read; all other datasets have images.
TEXT = 'text'
SEQUENCE_LENGTH = 64
_TEST_SHARE = 0.1
# Datasets that need no preparation come first.
_BY_NEED = sorted(DATASETS, key=lambda name: name not in INSTALLED)

flags.DEFINE_string(
  'dataset',
  'digits',
  'Training and test data: digits or text (installed), cifar10, mnist or '
  'fashion_mnist (in --data_dir), or MODULE:NAME of your own Dataset or of a '
  'function that returns one.',
)
flags.DEFINE_string(
  'text_file',
  None,
  'UTF-8 text file to use as the dataset, one token per character. Its last '
  'tenth is the test split. Implies --dataset=text. Default: the installed '
  'text.',
)
flags.DEFINE_integer(
  'sequence_length',
  None,
  'Number of predicted characters per sequence of --dataset=text, >= 1. '
  f'Default: {SEQUENCE_LENGTH}.',
)
flags.DEFINE_bool(
  'stream',
  False,
  'Read the training examples during the run, for data that does not fit in '
  'memory; by default they stay on the devices. The batches are the same. In '
  'your own --dataset, train may be a source with len(train) and train[i].',
)
flags.DEFINE_integer(
  'stream_processes',
  0,
  'Number of processes that read for --stream, for examples that are slow to '
  'decode. Default: 0; threads of this process read.',
)


def check(config: RunConfig) -> None:
  """Check the flags of the data before any data are read.

  Raises:
    ValueError: if a value is invalid, or has no effect on this run.
  """
  name = config.dataset
  if not dotted.is_dotted(name) and name not in DATASETS:
    close = difflib.get_close_matches(name.lower(), DATASETS, n=1)
    meant = f'; did you mean {close[0]}?' if close else ''
    raise ValueError(
      f'--dataset must be one of {", ".join(_BY_NEED)}, or MODULE:NAME of your '
      f'own, got {name!r}{meant}'
    )
  if config.text_file is not None and name != TEXT:
    raise ValueError(
      f'--text_file does nothing for --dataset={name}; leave one out'
    )
  _check_stream(config)
  if config.sequence_length is None:
    return
  if name != TEXT:
    raise ValueError(
      f'--sequence_length does nothing for --dataset={name}; leave it out'
    )
  if config.sequence_length < 1:
    raise ValueError(
      f'--sequence_length must be >= 1, got {config.sequence_length}'
    )


def _check_stream(config: RunConfig) -> None:
  if config.stream_processes < 0:
    raise ValueError(
      f'--stream_processes must be >= 0, got {config.stream_processes}'
    )
  if config.stream_processes and not config.stream:
    raise ValueError('--stream_processes does nothing without --stream')
  if config.stream and config.partition == 'dirichlet':
    raise ValueError(
      '--partition=dirichlet needs the labels of all examples; leave out '
      '--stream, or use --partition=sharded'
    )
  if config.stream and config.options.get('batch_stats') == 'reestimate':
    raise ValueError(
      '--batch_stats=reestimate reads batches that stay on the devices; leave '
      'out --stream, or use --batch_stats=average'
    )


def load(config: RunConfig, data_dir: str | os.PathLike[str] | None) -> Dataset:
  """Read the data of a run.

  Args:
    config: the run.
    data_dir: directory of the prepared datasets, as in `load_dataset`.

  Raises:
    ValueError: if the data cannot be read or have the wrong form.
  """
  if dotted.is_dotted(config.dataset):
    with dotted.named_errors(config.dataset):
      own_model = dotted.is_dotted(config.model)
      found = _own(config.dataset, own_model=own_model, stream=config.stream)
  elif config.text_file is not None:
    length = config.sequence_length or SEQUENCE_LENGTH
    found = read_text(config.text_file, length)
  else:
    found = load_dataset(
      config.dataset,
      data_dir,
      sequence_length=config.sequence_length,
      stream=config.stream,
    )
  if config.stream and not found.is_streamed:
    return found._replace(train=sources.Arrays(found.train))
  return found


def _own(name: str, *, own_model: bool, stream: bool) -> Dataset:
  found = dotted.load('dataset', name)
  if callable(found):
    found = found()
  if not isinstance(found, Dataset):
    raise ValueError(
      f'--dataset={name} gave {type(found).__name__}; expected '
      'prsgd_jax.data.Dataset(name, train, test, num_classes), '
      'with splits such as '
      "{'image': [n, ...], 'label': int[n]} or {'text': int[n, length + 1]}"
    )
  who = f'--dataset={name}'
  if found.is_streamed:
    found = own_data.check_source(who, found, stream=stream)
  splits = {}
  for split in ('train', 'test'):
    given = getattr(found, split)
    if split == 'train' and found.is_streamed:
      given = found.example()
    arrays = {}
    if isinstance(given, Mapping) and all(isinstance(n, str) for n in given):
      arrays = own_data.as_arrays(f'{who}: {split}', given)
    sizes = {n: np.shape(x)[:1] for n, x in arrays.items()}
    if len(set(sizes.values())) != 1 or not all(map(sum, sizes.values())):
      raise ValueError(
        f'{who}: {split} must be a dict of arrays of one length >= 1, got '
        f'{sizes or type(given).__name__}'
      )
    splits[split] = arrays
  shapes = [
    {n: np.shape(x)[1:] for n, x in arrays.items()}
    for arrays in splits.values()
  ]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'{who}: train and test must have arrays of the same names and shapes, '
      f'got {shapes[0]} and {shapes[1]}'
    )
  for arrays in splits.values():
    checked = dict(arrays)
    if own_model and not own_data.are_labels(arrays.get('label')):
      checked.pop('label', None)  # for the loss of a Task
    own_data.check_split(who, checked)
    own_data.check_classes(who, checked, found.num_classes)
  train = found.train if found.is_streamed else splits['train']
  return found._replace(train=train, test=splits['test'])


def read_text(path: str | os.PathLike[str], length: int) -> Dataset:
  """Return the characters of a text file as sequences of tokens.

  Each character is a token. The vocabulary is the set of characters in the
  whole file, ordered by code point.

  Args:
    path: UTF-8 text file.
    length: number of predicted characters per sequence, >= 1.

  Returns:
    The first nine tenths as the training split, the rest as the test split.

  Raises:
    ValueError: if the file cannot be read, is not UTF-8, or is too short.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode('utf-8')
  except OSError as error:
    raise ValueError(
      f'--text_file={path} cannot be read ({error.strerror})'
    ) from None
  except UnicodeDecodeError as error:
    raise ValueError(
      f'--text_file={path} is not UTF-8 text (byte {error.start}: '
      f'{error.reason}); convert it, with iconv for example'
    ) from None
  except ValueError as error:  # a path with a zero byte
    raise ValueError(f'--text_file={path!r} cannot be read: {error}') from None
  num_test = int(len(text) * _TEST_SHARE)
  if num_test <= length:
    raise ValueError(
      f'--text_file={path} has {len(text)} characters, of which the last tenth '
      f'is the test split; with --sequence_length={length} it needs '
      f'{10 * (length + 1)} or more'
    )
  codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  vocabulary, tokens = np.unique(codes, return_inverse=True)
  tokens = tokens.astype(np.min_scalar_type(len(vocabulary) - 1))
  return Dataset(
    TEXT,
    {'text': texts.cut(tokens[:-num_test], length)},
    {'text': texts.cut(tokens[-num_test:], length)},
    len(vocabulary),
  )
