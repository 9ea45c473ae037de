"""CHECKPOINT FILES of one run: find, verify, seal and remove them.

A directory whose name is a step in decimal digits is a checkpoint. Other names
are not: `.<step>.partial` was being written, `.<step>.deleted` was being
removed, and `<step>.unrecorded` was set aside. A name changes by one rename, so
that a killed process leaves no partial checkpoint.
"""

from collections.abc import Mapping, Sequence
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

Path = str | os.PathLike
RECORD = 'record.json'
_MAX_RECORD = 2**28  # bytes; a record of a thousand leaves has about 2^20
_STEP = re.compile('0|[1-9][0-9]*', re.ASCII)
_LEFT_OVER = re.compile(r'\.[0-9]+\.(partial|deleted)', re.ASCII)


class CheckpointError(ValueError):
  """A checkpoint cannot be used; the message says why and what to do."""


def steps(directory: Path) -> list[int]:
  """Return the steps of the checkpoints, in order.

  Files, broken links and directories with other names are ignored.

  Args:
    directory: directory of the checkpoints of one run; it may be missing.

  Raises:
    CheckpointError: if it is a file, or cannot be listed.

  Example:
    >>> steps('no/such/directory')
    []
  """
  root = pathlib.Path(directory)
  try:
    names = [p.name for p in root.iterdir() if p.is_dir()]
  except FileNotFoundError:
    return []
  except NotADirectoryError as error:
    raise CheckpointError(
      f'{root} is no directory of checkpoints; move it away'
    ) from error
  except OSError as error:
    raise CheckpointError(
      f'{root} cannot be listed ({error.strerror}); make it readable'
    ) from error
  return sorted(int(name) for name in names if _STEP.fullmatch(name))


def latest_step(directory: Path) -> int | None:
  """Return the step of the newest checkpoint, None if there is none.

  Example:
    >>> latest_step('no/such/directory') is None
    True
  """
  return max(steps(directory), default=None)


def path_of(directory: Path, step: int) -> pathlib.Path:
  """Return the path of the checkpoint of a step."""
  return pathlib.Path(directory).absolute() / str(step)


def remove_left_over(root: pathlib.Path) -> None:
  """Remove the files in a directory that an interrupted process left."""
  for path in list(root.iterdir() if root.is_dir() else ()):
    if _LEFT_OVER.fullmatch(path.name):
      remove(path)


def set_aside(directory: Path, step: int) -> pathlib.Path:
  """Rename a checkpoint, which is then ignored but keeps its files.

  Args:
    directory: directory of the checkpoints of one run.
    step: the checkpoint to rename.

  Returns:
    Its new path, `<step>.unrecorded`, or `<step>.unrecorded-<number>` if that
    name is taken.
  """
  source = path_of(directory, step)
  target = source.with_name(f'{step}.unrecorded')
  number = 1
  while os.path.lexists(target):
    number += 1
    target = source.with_name(f'{step}.unrecorded-{number}')
  source.rename(target)
  sync(target.parent)
  return target


def remove(path: pathlib.Path) -> None:
  """Remove a directory, a file or a link (not its target), if it exists."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def sync(directory: pathlib.Path) -> None:
  """Wait until the names in a directory are on the disk."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    # Because some network file systems cannot fsync a directory.
    with contextlib.suppress(OSError):
      os.fsync(descriptor)
  finally:
    os.close(descriptor)


def make(directory: pathlib.Path) -> None:
  """Create a directory and its parents, and wait until they are on the disk."""
  missing = [p for p in (directory, *directory.parents) if not p.exists()]
  directory.mkdir(parents=True)
  for path in missing:
    sync(path.parent)


def sync_all(root: pathlib.Path) -> None:
  """Wait until the names in a directory and those below are on the disk."""
  for directory, _, _ in os.walk(root):
    sync(pathlib.Path(directory))


def write_record(
  source: pathlib.Path, record: Mapping[str, Any], files: Mapping[str, str]
) -> None:
  """Add the record with all checksums, and force it to the disk.

  Args:
    source: directory of the checkpoint, with all its other files.
    record: dict of JSON types to keep in it.
    files: file -> SHA-256, as `digests` returns them.
  """
  whole = {**record, 'files': dict(files)}
  with open(source / RECORD, 'w', encoding='utf-8') as file:
    json.dump({**whole, 'sha256': _seal(whole)}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())
  sync(source)


def read_seal(source: pathlib.Path) -> dict[str, Any]:
  """Return the record of a checkpoint, without verifying its other files.

  Args:
    source: directory of the checkpoint.

  Raises:
    CheckpointError: if the record is damaged.
  """
  record = _unsealed(source)
  if isinstance(record, str):
    raise _damaged(source, record)
  return record


def read_record(
  source: pathlib.Path, parts: Sequence[str] | None = None
) -> dict[str, Any]:
  """Return the record of a checkpoint after verifying its files.

  Args:
    source: directory of the checkpoint.
    parts: names of the directories in it to verify. Default: all files.

  Raises:
    CheckpointError: if a file is missing, new or changed.
  """
  fault = _fault(source, parts)
  if fault is not None:
    raise _damaged(source, fault)
  return read_seal(source)


def _unsealed(source: pathlib.Path) -> dict[str, Any] | str:
  """Return the record with its seal, or a text on what is wrong with it."""
  path = source / RECORD
  try:
    # Not opened unless a file, because opening a pipe waits for its writer.
    if not path.is_file() or path.stat().st_size > _MAX_RECORD:
      return f'{RECORD} cannot be read'
    record = json.loads(path.read_text(encoding='utf-8'))
    unsealed = {name: x for name, x in record.items() if name != 'sha256'}
    parts = [record[name] for name in ('description', 'files', 'leaves')]
    whole = all(isinstance(part, dict) for part in parts)
    if whole and record['sha256'] == _seal(unsealed):
      return record
  # RecursionError, because json.loads recurses into nested values.
  except (
    OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError
  ):  # fmt: skip
    return f'{RECORD} cannot be read'
  return f'{RECORD} has changed'


def _fault(
  source: pathlib.Path, parts: Sequence[str] | None = None
) -> str | None:
  """Return what is wrong with a checkpoint, None if it is whole."""
  record = _unsealed(source)
  if isinstance(record, str):
    return record
  try:
    files, found = record['files'], digests(source, parts)
  except OSError as error:
    return f'{error.filename} cannot be read: {error.strerror}'
  if parts is not None:
    files = {n: x for n, x in files.items() if n.partition('/')[0] in parts}
  for name in sorted({*files, *found}):
    if found.get(name) != files.get(name):
      changed = 'has changed' if name in files else 'was added'
      return f'{name} {changed if name in found else "is missing"}'
  return None


def digests(
  root: pathlib.Path, parts: Sequence[str] | None = None
) -> dict[str, str]:
  """Return file -> SHA-256 for the files of a directory but the record.

  Args:
    root: the directory.
    parts: names of the directories in it to read. Default: all files.
  """
  roots = [root] if parts is None else [root / part for part in parts]
  paths = sorted(p for start in roots for p in start.rglob('*'))
  files = [p for p in paths if p.is_file() and p.name != RECORD]
  return {str(p.relative_to(root)): _digest(p) for p in files}


def _digest(path: pathlib.Path) -> str:
  """Return the SHA-256 of a file, after forcing it to the disk."""
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _seal(record: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _damaged(source: pathlib.Path, fault: str) -> CheckpointError:
  if not _STEP.fullmatch(source.name):  # a copy, or one that was set aside
    return CheckpointError(f'{source} is damaged ({fault}); use another one')
  older = [step for step in steps(source.parent) if step < int(source.name)]
  paths = [source.parent / str(step) for step in reversed(older)]
  whole = next((path for path in paths if _fault(path) is None), None)
  then = f'resume from {whole}' if whole else 'start again: no older is whole'
  return CheckpointError(
    f'{source} is damaged ({fault}); move it away to {then}'
  )
