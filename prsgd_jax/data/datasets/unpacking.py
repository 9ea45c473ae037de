"""Archives unpacked within bounds: of each file no more than it should have.

A few megabytes of an archive may stand for gigabytes, and a damaged header may
promise any size. So the caller names the files that it wants with their sizes,
everything is read as a stream, and reading stops one byte past a size.
"""

import bz2
from collections.abc import Callable, Mapping
import gzip
import lzma
import os
import pathlib
import tarfile
from typing import IO, Any
import zipfile

from prsgd_jax.data.datasets import storage

# What an archive may hold besides the files that are wanted of it.
SLACK = 2**24  # bytes

# The first bytes of a compressed file -> what reads it.
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
  b'\x1f\x8b': gzip.open,
  b'BZh': bz2.open,
  b'\xfd7zXZ\0': lzma.open,
  b'\x5d\0\0': lzma.open,
}
# Of the others the standard library reads more than is asked for.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class UnpackError(Exception):
  """An archive is damaged, or holds more than it should: one line."""


def unpack(path: pathlib.Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
  """Returns the wanted files of an archive or a directory that are there.

  Args:
    path: A tar (of any compression) or zip archive, or a directory.
    sizes: The name of each file, without directory -> the bytes it may have.
      It may be compressed by gzip and is then called NAME.gz.

  Raises:
    UnpackError: Something is damaged, or too large.
    OSError: Something cannot be read.
  """
  if path.is_dir():
    members: dict[str, bytes] = {}
    for name in _spellings(sizes):
      if (path / name).is_file():
        with (path / name).open('rb') as file:
          _keep(members, name, file, sizes)
    return members
  if not path.is_file():  # to open a pipe is to wait for its writer
    raise UnpackError('it is no regular file')
  with path.open('rb') as file:
    return unpack_file(file, sizes)


def unpack_file(file: IO[bytes], sizes: Mapping[str, int]) -> dict[str, bytes]:
  """Returns the wanted files of an open archive, as `unpack`."""
  limit = sum(sizes.values()) + SLACK
  if file.seek(0, os.SEEK_END) > limit:
    raise UnpackError(f'it has more than {limit} bytes')
  file.seek(0)
  start = file.read(6)
  file.seek(0)
  try:
    for magic, opener in _OPENERS.items():
      if start.startswith(magic):
        return _unpack_tar(_Bounded(opener(file), limit), sizes)
    try:
      return _unpack_tar(file, sizes)
    except tarfile.ReadError:
      file.seek(0)
      return _unpack_zip(file, sizes)
  except (UnpackError, PermissionError):
    raise
  # What tarfile, zipfile, gzip, lzma and bz2 raise on damaged bytes has no
  # common class: EOFError, struct.error, zlib.error, MemoryError and others.
  except Exception as error:
    raise UnpackError(storage.one_line(error)) from error


def content(file: Any, name: str, size: int) -> bytes:
  """Returns what is in a file that may be compressed by gzip.

  Args:
    file: Open for reading; no more is read than `size` + 1 bytes need.
    name: Its name; one ending in .gz is compressed.
    size: The bytes it may have, uncompressed.

  Raises:
    UnpackError: It is damaged, or has more bytes.

  Example:
    >>> import gzip, io
    >>> content(io.BytesIO(gzip.compress(b'abc')), 'x.gz', size=3)
    b'abc'
  """
  try:
    stream = gzip.GzipFile(fileobj=file) if name.endswith('.gz') else file
    data = stream.read(size + 1)
  except (UnpackError, PermissionError):
    raise
  except Exception as error:  # as in `unpack_file`
    raise UnpackError(
      f'{name} is damaged or cut short: {storage.one_line(error)}'
    ) from error
  if len(data) > size:
    raise UnpackError(f'{name} has more than the {size} bytes it should have')
  return data


class _Bounded:
  """A stream that ends in an error past a limit."""

  def __init__(self, file: Any, limit: int):
    self._file = file
    self._limit = self._left = limit

  def read(self, size: int) -> bytes:
    """Returns the next bytes."""
    data = self._file.read(min(size, self._left + 1))
    self._left -= len(data)
    if self._left < 0:
      raise UnpackError(f'it unpacks to more than {self._limit} bytes')
    return data


def _spellings(sizes: Mapping[str, int]) -> list[str]:
  """Compressed ones first: a plain file counts where both are there."""
  return [f'{name}.gz' for name in sizes] + list(sizes)


def _keep(
  members: dict[str, bytes], name: str, file: Any, sizes: Mapping[str, int]
) -> None:
  member = name.removesuffix('.gz')
  members[member] = content(file, name, sizes[member])


def _unpack_tar(stream: Any, sizes: Mapping[str, int]) -> dict[str, bytes]:
  members: dict[str, bytes] = {}
  wanted = _spellings(sizes)
  with tarfile.open(fileobj=stream, mode='r|') as tar:
    for entry in tar:
      name = os.path.basename(entry.name)
      # A link or a device is none, wherever it points.
      file = tar.extractfile(entry) if entry.isreg() else None
      if file is not None and name in wanted:
        _keep(members, name, file, sizes)
  return members


def _unpack_zip(file: IO[bytes], sizes: Mapping[str, int]) -> dict[str, bytes]:
  members: dict[str, bytes] = {}
  with zipfile.ZipFile(file) as archive:
    entries = {os.path.basename(e.filename): e for e in archive.infolist()}
    for name in _spellings(sizes):
      if name not in entries:
        continue
      if entries[name].compress_type not in _ZIP_METHODS:
        raise UnpackError(f'{name} is neither stored nor deflated')
      with archive.open(entries[name]) as opened:
        _keep(members, name, opened, sizes)
  return members
