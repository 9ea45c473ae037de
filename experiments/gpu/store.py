"""The results of all pieces in one JSON file, written after each of them.

A piece whose process ends before its result is written is tried again by the
next call, `ATTEMPTS` times in all.
"""

import json
import pathlib
from typing import Any

from experiments.running.records import json_files, writing

NAME = 'results.json'
ATTEMPTS = 3

_FORM = json_files.object_of(
  {
    'machine': json_files.object_of({}),
    'done': json_files.object_of({}),
    'attempts': json_files.values_of(json_files.count),
  }
)

Results = dict[str, Any]


def read(directory: pathlib.Path) -> Results:
  """Read the results; without a file, they are empty.

  Raises:
    DamagedFile: if the file has another form.
  """
  found = json_files.read(directory / NAME, _FORM)
  return found or {'machine': {}, 'done': {}, 'attempts': {}}


def write(directory: pathlib.Path, results: Results) -> None:
  """Write the results atomically."""
  directory.mkdir(parents=True, exist_ok=True)
  writing.write_text(directory / NAME, writing.to_json(results))


def is_due(results: Results, name: str) -> bool:
  """Return whether a piece has no result yet."""
  return name not in results['done']


def begin(directory: pathlib.Path, results: Results, name: str) -> bool:
  """Note that a piece begins, and return whether it may.

  A piece that has ended the process `ATTEMPTS` times is given up.
  """
  count = results['attempts'].get(name, 0) + 1
  if count > ATTEMPTS:
    reason = f'the process ended {ATTEMPTS} times before a result'
    finish(directory, results, name, {'failed': reason})
    return False
  results['attempts'][name] = count
  write(directory, results)
  return True


def finish(
  directory: pathlib.Path, results: Results, name: str, found: Any
) -> None:
  """Keep the result of a piece."""
  results['done'][name] = json.loads(writing.to_json(found))
  results['attempts'].pop(name, None)
  write(directory, results)
