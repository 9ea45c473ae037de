"""Curves of finished pieces, kept in files beside the results.

A long target takes hours, more than a borrowed machine may have, and the
directories of its runs stay there. A kept curve is a file under version
control, so that another machine only trains the pieces that are left.
"""

import pathlib
from typing import NamedTuple

from experiments.running.records import json_files, writing
from experiments.running.records.records import Record

# Name -> its value at each evaluation.
Curve = dict[str, list[float]]

_FORM = json_files.object_of(
  {
    'piece': json_files.text,
    'seconds': json_files.number,
    'made_by': json_files.object_of(
      dict.fromkeys(('device', 'jax', 'commit'), json_files.text)
    ),
    'curve': json_files.values_of(json_files.list_of(json_files.number)),
  }
)


class KeptCurve(NamedTuple):
  """What is kept of a finished piece.

  Attributes:
    seconds: time that the run took.
    made_by: the machine, the versions and the commit of the run.
    curve: values at its evaluations.
  """

  seconds: float
  made_by: Record
  curve: Curve


def read(path: pathlib.Path | None) -> KeptCurve | None:
  """Return the kept curve in a file, None without the file.

  Raises:
    DamagedFile: if the file has another form.
  """
  found = None if path is None else json_files.read(path, _FORM)
  if found is None:
    return None
  curve = writing.with_nan(found['curve'])
  return KeptCurve(found['seconds'], found['made_by'], curve)


def write(path: pathlib.Path, piece: str, kept: KeptCurve) -> None:
  """Keep a curve.

  Args:
    path: file to write.
    piece: name of the piece.
    kept: what to keep of it.
  """
  record = {
    'piece': piece,
    **kept._asdict(),
    'seconds': round(kept.seconds, 1),
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  writing.write_text(path, writing.to_json(record))
