"""Download a dataset and prepare it for prsgd_jax and TFDS.

  python experiments/prepare_data.py NAME [--data_dir=DIR] [--from_archive=PATH]

NAME is one of:

  digits         1797 images of digits, 8x8, installed with the package
  text           a million characters of Shakespeare, installed with the package
  mnist          28x28 gray images of digits; downloads 11 MB
  fashion_mnist  28x28 gray images of clothes; downloads 30 MB
  cifar10        32x32 color images of objects; downloads 163 MB

The official archive is downloaded to DIR/downloads and verified by its
published checksum. The dataset is written as the stock TFDS dataset in the
array_record format; TensorFlow is not needed. You can delete DIR/downloads.

Without a network, download the archive on another machine and pass it:

  python experiments/prepare_data.py cifar10 --from_archive=FILE
  python experiments/prepare_data.py mnist --from_archive=DIRECTORY

FILE is cifar-10-binary.tar.gz. DIRECTORY holds the four files
train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. If they are packed
differently, unpack them and pass the directory of the unpacked files.

The dataset appears in DIR only when it is complete. An existing dataset is
never changed. Then train on it:

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

import pathlib
import time

from absl import flags

from experiments.running.flags import cli
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
  'Official archive of the dataset on this machine, or the directory of its '
  'files, packed or unpacked. Default: download it.',
)


def prepare(name: str, data_dir: str | None, from_archive: str | None) -> None:
  """Prepare a dataset, or report that it is already prepared.

  Args:
    name: name of the dataset.
    data_dir: directory of the datasets; None for the default.
    from_archive: archive or directory of files to read; None to download it.

  Raises:
    DatasetError: if it cannot be prepared, or the prepared one is damaged.
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
    splits = _read_splits(name, root, from_archive)
    _say(f'{name}: writing to {root}, about a minute')
    builder = stock_builders.make_builder(name, splits)
    directory = preparing.prepare(builder, root)
  load_dataset(name, root)  # raises if it does not read back
  _say(f'{name}: wrote {directory} in {time.time() - start:.0f} s, read back')


def _read_splits(
  name: str, root: pathlib.Path, from_archive: str | None
) -> dict[str, storage.Split]:
  if from_archive is not None:
    path = storage.expand(from_archive, '--from_archive=PATH')
  else:
    _say(f'{name}: downloading from {archives.ARCHIVES[name].base_url}')
    path = archives.download(name, root / 'downloads')
  return archives.read(name, path)


def _say(message: str) -> None:
  print(message, flush=True)


def main(name: str) -> None:
  with cli.one_line_errors(DatasetError):
    prepare(name, FLAGS.data_dir, FLAGS.from_archive)


if __name__ == '__main__':
  cli.run(main)
