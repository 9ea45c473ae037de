"""Prepares a dataset for prsgd_jax (and TFDS), without tensorflow.

  python experiments/prepare_data.py NAME [--data_dir=DIR] [--from_archive=PATH]

NAME is one of:

  digits         8x8 digits that come with scikit-learn; no download. It is
                 also prepared by itself the first time it is used.
  mnist          the official archive is downloaded (11 MB),
  fashion_mnist  likewise (30 MB),
  cifar10        likewise (163 MB),
                 checked against the published MD5 sums, and written as the
                 stock TFDS dataset in the array_record format.

No network? Fetch the archive elsewhere and pass it:

  python experiments/prepare_data.py cifar10 --from_archive=ARCHIVE
  python experiments/prepare_data.py mnist --from_archive=DIRECTORY

where ARCHIVE is cifar-10-binary.tar.gz, and DIRECTORY (or a tar or zip archive)
holds the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz.

The dataset appears in DIR only once it is complete and was read back. One that
is there already is never changed. Afterwards:

  python experiments/train.py --dataset=NAME --data_dir=DIR
"""

from collections.abc import Sequence
import pathlib
import sys
import time

from absl import app, flags
import tqdm

from prsgd_jax.datasets import (
  DATASETS,
  DatasetError,
  archives,
  load_dataset,
  loading,
  preparing,
  stock_builders,
  storage,
)

_PROGRAM = 'prepare_data.py'

_DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'TFDS data directory to write to; by default $TFDS_DATA_DIR, or'
  ' ~/tensorflow_datasets.',
)
_FROM_ARCHIVE = flags.DEFINE_string(
  'from_archive',
  None,
  'The official archive (or a directory with its files) on this machine;'
  ' by default it is downloaded.',
)
_VERIFY = flags.DEFINE_bool(
  'verify',
  True,
  'Accept only the published contents. --noverify takes what is there.',
)


def prepare(
  name: str, data_dir: str | None, from_archive: str | None, verify: bool
) -> None:
  """Prepares a dataset, or says that it is prepared already.

  Raises:
    DatasetError: It cannot be prepared; or what is there is damaged.
  """
  root = storage.resolve_data_dir(data_dir)
  if name == 'digits' and from_archive is not None:
    raise DatasetError('digits has no archive: leave out --from_archive')
  if directory := loading.find_dataset(name, root):
    load_dataset(name, root)  # raises if it is damaged
    _say(f'{name} is already prepared in {directory}, left as it is')
    return
  preparing.check_writable(root)  # before a long download, not after
  start = time.time()
  if name == 'digits':
    directory = loading.prepare_digits(root)
  else:
    splits = _read_splits(name, from_archive, verify)
    _say(f'{name}: writing to {root}, about a minute')
    directory = preparing.prepare(
      stock_builders.make_builder(name, splits), splits, root
    )
  _say(f'{name}: wrote {directory} in {time.time() - start:.0f} s, read back')


def _read_splits(
  name: str, from_archive: str | None, verify: bool
) -> dict[str, storage.Split]:
  if from_archive is None:
    where = archives.ARCHIVES[name].base_url
    _say(f'{name}: downloading from {where}')
    members = archives.download_archive(name, tqdm.tqdm)
  else:
    where = from_archive
    members = archives.read_archive(name, pathlib.Path(where).expanduser())
  wrong = ', '.join(archives.wrong_sums(name, members))
  if wrong and verify:
    raise DatasetError(
      f'{wrong} from {where} does not have the published MD5 sum;'
      f' {archives.how_to_fetch(name)}, or pass --noverify to take it as it is'
    )
  splits = archives.decode(name, members)
  if wrong:
    _warn(
      f'WARNING: NOT THE PUBLISHED {name.upper()}: {wrong} from {where} does'
      ' not have the published MD5 sum'
    )
  return splits


def _say(message: str) -> None:
  print(message, flush=True)


def _warn(message: str) -> None:
  print(f'{_PROGRAM}: {message}', file=sys.stderr, flush=True)


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    _warn(f'{storage.one_line(error)}; run: python {argv[0]} --help')
    sys.exit(2)


def main(argv: Sequence[str]) -> int:
  names = ', '.join(DATASETS)
  if len(argv) != 2:
    got = ' '.join(argv[1:]) or 'nothing'
    _warn(
      f'expected one dataset of {names}, got {got}; run: python {argv[0]} NAME'
      ' --data_dir=DIR'
    )
    return 2
  try:
    prepare(argv[1], _DATA_DIR.value, _FROM_ARCHIVE.value, _VERIFY.value)
  except DatasetError as error:
    _warn(str(error))
    return 1
  except KeyboardInterrupt:
    _warn('interrupted; run it again')
    return 130
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
