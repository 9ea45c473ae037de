"""Prepares a dataset for prsgd_jax (and TFDS), without tensorflow.

  python experiments/prepare_data.py NAME [--data_dir=DIR] [--from_archive=PATH]

NAME is one of:

  digits         1797 images of digits, 8x8, in the package; no download. The
                 first program that uses them prepares them, too.
  text           a million characters of Shakespeare, in the package.
  mnist          downloads 11 MB.
  fashion_mnist  downloads 30 MB.
  cifar10        downloads 163 MB.

The official archive of a downloaded dataset is checked against the published
MD5 sums, and written as the stock TFDS dataset in the array_record format.

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

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import time

from absl import flags
import tqdm

from experiments.running.flags import cli
from experiments.running.process import messages
from prsgd_jax.data.datasets import (
  DatasetError,
  archives,
  load_dataset,
  loading,
  preparing,
  stock_builders,
  storage,
)

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(cli)
flags.DEFINE_string(
  'from_archive',
  None,
  'The official archive (or a directory with its files) on this machine;'
  ' by default it is downloaded.',
)
flags.DEFINE_bool(
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
  if name in loading.INSTALLED and from_archive is not None:
    raise DatasetError(f'{name} has no archive: leave out --from_archive')
  if directory := loading.find_dataset(name, root):
    load_dataset(name, root)  # raises if it is damaged
    _say(f'{name} is already prepared in {directory}, left as it is')
    return
  preparing.check_writable(root)  # before a long download, not after
  start = time.time()
  if name in loading.INSTALLED:
    directory = loading.prepare_installed(name, root)
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
    path = storage.expand(where, '--from_archive=PATH')
    members = archives.read_archive(name, path)
  wrong = ', '.join(archives.wrong_sums(name, members))
  if wrong and verify:
    raise DatasetError(
      f'{wrong} from {where} does not have the published MD5 sum;'
      f' {archives.how_to_fetch(name)}, or pass --noverify to take it as it is'
    )
  splits = archives.decode(name, members)
  if wrong:
    messages.warn(
      f'WARNING: NOT THE PUBLISHED {name.upper()}: {wrong} from {where} does'
      ' not have the published MD5 sum'
    )
  return splits


def _say(message: str) -> None:
  print(message, flush=True)


def main(name: str) -> None:
  with cli.one_line_errors(DatasetError):
    prepare(name, FLAGS.data_dir, FLAGS.from_archive, FLAGS.verify)


if __name__ == '__main__':
  cli.run(main)
