"""Makes a TFDS directory, which appears complete and checked, or not at all.

Nothing here touches the network, imports tensorflow, or deletes what it has not
made itself.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging

from prsgd_jax import system_errors
from prsgd_jax.data.datasets import storage
from prsgd_jax.data.datasets.storage import DatasetError, Split, one_line


def check_writable(data_dir: pathlib.Path) -> None:
  """Makes `data_dir` if there is none.

  Raises:
    DatasetError: Nothing can be written there.
  """
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=data_dir):
      pass
  except FileExistsError as error:
    raise DatasetError(
      f'cannot write to {data_dir}: it is a file; pass a directory as data_dir'
    ) from error
  except OSError as error:
    raise DatasetError(
      f'cannot write to {data_dir}: {one_line(error)}; pass a data_dir that can'
      ' be written'
    ) from error


def prepare(
  builder_cls: Any, splits: Mapping[str, Split], data_dir: pathlib.Path
) -> pathlib.Path:
  """Makes a TFDS directory; it appears complete and checked, or not at all.

  It is built in a private directory, read back, compared with `splits`, and
  put in its place by one rename. Several processes may call this at once: one
  builds, the others wait for it.

  Args:
    builder_cls: A TFDS builder that needs no download and no tensorflow.
    splits: What the builder generates, in any order.
    data_dir: The TFDS data directory, made if there is none.

  Returns:
    `<data_dir>/<name>/<version>`. If it is there already it is left as it is.

  Raises:
    DatasetError: It cannot be written, or does not read back as `splits`.
  """
  final = data_dir / builder_cls.name / str(builder_cls.VERSION)
  check_writable(data_dir)
  try:
    with _only_writer(data_dir, builder_cls.name):
      if not final.exists():
        _build(builder_cls, splits, data_dir, final)
  except DatasetError:
    raise
  # Of a full disk array_record makes a RuntimeError, which TFDS passes on.
  except Exception as error:
    if system_errors.error_number(error) is None:
      raise
    why = system_errors.reason(error)
    why = one_line(error) if isinstance(error, OSError) else why
    raise DatasetError(
      f'cannot write {builder_cls.name} to {data_dir}: {why}; mend that, or'
      ' pass another data_dir'
    ) from error
  return final


def _build(
  builder_cls: Any,
  splits: Mapping[str, Split],
  data_dir: pathlib.Path,
  final: pathlib.Path,
) -> None:
  tfds = storage.import_tfds()
  prefix = f'.{builder_cls.name}-staging-'
  for stale in data_dir.glob(prefix + '*'):  # of a run that was killed
    shutil.rmtree(stale, ignore_errors=True)
  staging = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=data_dir))
  try:
    with storage.without_tfds_logs(), _without_output():
      builder_cls(
        data_dir=staging, file_format='array_record'
      ).download_and_prepare(
        download_dir=staging / 'downloads',
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )
    built = staging / final.parent.name / final.name
    _check_same(built, splits)
    _flush(built)
    final.parent.mkdir(exist_ok=True)
    os.rename(built, final)
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def _check_same(built: pathlib.Path, splits: Mapping[str, Split]) -> None:
  try:
    written, _ = storage.read_prepared(built)
  except storage.DamagedError as error:
    raise DatasetError(
      f'what was written to {built} cannot be read back: {error}; check the'
      ' disk and run this again'
    ) from error
  for split in storage.SPLITS:
    if _content(written[split]) != _content(splits[split]):
      raise DatasetError(
        f'what was written to {built} reads back differently in split {split};'
        ' check the disk and run this again'
      )


def _content(split: Split) -> Counter[bytes]:
  """Returns a multiset of the examples: TFDS shuffles what it writes."""
  columns = [split[key] for key in sorted(split)]
  return Counter(
    hashlib.sha256(b''.join(x.tobytes() for x in example)).digest()
    for example in zip(*columns)
  )


def _flush(directory: pathlib.Path) -> None:
  # Else a power cut after the rename could leave empty files in place.
  for path in directory.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())


@contextlib.contextmanager
def _only_writer(data_dir: pathlib.Path, name: str) -> Iterator[None]:
  """Holds the lock on making `name` in `data_dir`, for all processes."""
  with (data_dir / f'.{name}.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('waiting: another process prepares %s', name)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield  # closing the file releases the lock, and so does being killed


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
  # TFDS announces a download on stdout, where there is none, and draws its
  # progress bars on stderr.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    yield
