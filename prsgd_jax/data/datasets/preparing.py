"""PREPARING: makes a TFDS directory, which appears complete or not at all.

This module never uses the network, imports tensorflow or deletes a data set.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import io
import pathlib
import shutil
import tempfile
from typing import Any

from absl import logging

from prsgd_jax import system_errors
from prsgd_jax.data.datasets import storage
from prsgd_jax.data.datasets.storage import DatasetError, one_line


def check_writable(data_dir: pathlib.Path) -> None:
  """Check that a directory can be written; create it if missing.

  Args:
    data_dir: TFDS' data directory.

  Raises:
    DatasetError: The directory cannot be created or written.
  """
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=data_dir):
      pass
  except OSError as error:
    raise DatasetError(
      f'cannot write to {data_dir}: {one_line(error)}; pass a data_dir'
      ' that can be written'
    ) from error


def prepare(builder_cls: Any, data_dir: pathlib.Path) -> pathlib.Path:
  """Make a TFDS directory, unless it exists.

  TFDS builds it under a temporary name and renames it at the end. Several
  processes may call this at once; one builds while the rest wait.

  Args:
    builder_cls: A TFDS builder that needs no download and no tensorflow.
    data_dir: TFDS' data directory; created if missing.

  Returns:
    `<data_dir>/<name>/<version>`.

  Raises:
    DatasetError: The directory cannot be written.
  """
  final = data_dir / builder_cls.name / str(builder_cls.VERSION)
  check_writable(data_dir)
  try:
    with _only_writer(data_dir, builder_cls.name):
      if not final.exists():
        # Left by killed processes, because this one holds the lock.
        for stale in final.parent.glob(f'incomplete.*_{final.name}'):
          shutil.rmtree(stale, ignore_errors=True)
        _build(builder_cls, data_dir)
  # Any error, because array_record raises RuntimeError on a full disk.
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


def _build(builder_cls: Any, data_dir: pathlib.Path) -> None:
  tfds = storage.import_tfds()
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  with (
    storage.without_tfds_logs(),
    _without_output(),
    tempfile.TemporaryDirectory() as empty,  # TFDS makes one if given none
  ):
    builder = builder_cls(data_dir=data_dir, file_format='array_record')
    builder.download_and_prepare(download_dir=empty, download_config=config)


@contextlib.contextmanager
def _only_writer(data_dir: pathlib.Path, name: str) -> Iterator[None]:
  """Hold the lock of all processes that prepare `name` in `data_dir`."""
  with (data_dir / f'.{name}.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('waiting: another process prepares %s', name)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield  # closing the file releases the lock; so does the end of the process


@contextlib.contextmanager
def _without_output() -> Iterator[None]:
  # Because TFDS announces a download on stdout even if there is none, and draws
  # progress bars on stderr.
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    yield
