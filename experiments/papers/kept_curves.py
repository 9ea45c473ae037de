"""Curves of finished pieces, kept in files beside the results.

A long target takes hours, more than a borrowed machine may have, and the
directories of its runs stay there. A kept curve is a file under version
control, so that another machine only trains the pieces that are left.
"""

import pathlib
from typing import Any, NamedTuple

from experiments.running.records import json_files, records, writing

# Name -> its value at each evaluation.
Curve = dict[str, list[float]]

_FORM = json_files.object_of(
  {
    'piece': json_files.text,
    'seconds': json_files.number,
    'commit': json_files.text,
    'curve': json_files.values_of(json_files.list_of(json_files.number)),
  }
)


class KeptCurve(NamedTuple):
  """What is kept of a finished piece.

  Attributes:
    seconds: time that the run took.
    curve: values at its evaluations.
  """

  seconds: float
  curve: Curve


def read(path: pathlib.Path | None) -> KeptCurve | None:
  """Return the kept curve in a file, None without the file.

  Raises:
    DamagedFile: if the file has another form.
  """
  found = None if path is None else json_files.read(path, _FORM)
  if found is None:
    return None
  return KeptCurve(found['seconds'], writing.with_nan(found['curve']))


def write(path: pathlib.Path, piece: str, kept: KeptCurve) -> None:
  """Keep a curve, with the machine and the commit that made it.

  Args:
    path: file to write.
    piece: name of the piece.
    kept: its time and its curve.
  """
  record: dict[str, Any] = {
    'piece': piece,
    'seconds': round(kept.seconds, 1),
    'machine': records.machine(),
    'commit': records.commit(),
    'curve': kept.curve,
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  writing.write_text(path, writing.to_json(record))
