"""Save the results of targets, and draw their figures."""

from collections.abc import Mapping
import json
import math
import pathlib
import time
from typing import Any

from matplotlib.figure import Figure

from experiments.papers import claims
from experiments.papers.target import Outcome, Setting, Target
from experiments.running.records import records, writing
from experiments.tools import drawing, figure_files


def measure(target: Target, setting: Setting, path: pathlib.Path) -> Outcome:
  """Measure a target, and save and draw its results with the time it took.

  Args:
    target: the target.
    setting: where and at what scale to measure it.
    path: as in `save`.
  """
  begun, worked = time.monotonic(), time.process_time()
  outcome = target.measure(setting)
  save(
    target,
    outcome,
    path,
    scale=setting.scale,
    seconds=time.monotonic() - begun,
    cpu_seconds=time.process_time() - worked,
  )
  return outcome


def save(
  target: Target,
  outcome: Outcome,
  path: pathlib.Path,
  *,
  scale: str,
  seconds: float,
  cpu_seconds: float | None = None,
) -> None:
  """Save the results of a target, and draw them.

  Args:
    target: the target.
    outcome: the results of its `measure`.
    path: JSON file to write; the figure has the suffix `.png`.
    scale: scale of the results, such as 'cpu'.
    seconds: time that `measure` took.
    cpu_seconds: CPU time of its process, which depends less on other work of
      the machine. Default: not recorded.
  """
  record = {
    'name': target.name,
    'title': target.title,
    'paper': target.paper,
    'scale': scale,
    'seconds': round(seconds, 1),
    **({} if cpu_seconds is None else {'cpu_seconds': round(cpu_seconds, 1)}),
    'machine': records.machine(),
    'commit': records.commit(),
    'seeds': list(outcome.seeds),
    'claims': [claims.to_json(claim) for claim in outcome.claims],
    'data': outcome.data,
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  text = writing.to_json(record)
  draw(
    target, writing.with_nan(json.loads(text)['data']), path.with_suffix('.png')
  )
  writing.write_text(path, text)


def holds(path: pathlib.Path, outcome: Outcome) -> bool:
  """Return whether a file has the data and the claims of an outcome.

  Args:
    path: JSON file of `save`, which may be missing.
    outcome: the results; rules may have changed since the file was written.
  """
  if not path.exists():
    return False
  judged = {
    'data': outcome.data,
    'claims': [claims.to_json(claim) for claim in outcome.claims],
  }
  kept = json.loads(path.read_text())
  wanted = json.loads(writing.to_json(judged))
  return all(kept[name] == value for name, value in wanted.items())


def missing(path: pathlib.Path) -> float:
  """Return how many runs the results in a file lack; infinity without a file.

  Args:
    path: JSON file of `save`, of a target that is judged in parts.
  """
  if not path.exists():
    return math.inf
  return int(json.loads(path.read_text())['data']['missing'])


def draw(target: Target, data: Mapping[str, Any], path: pathlib.Path) -> None:
  """Draw the data of a target into a PNG file."""
  figure_files.save(make_figure(target, data), path)


def make_figure(target: Target, data: Mapping[str, Any]) -> Figure:
  """Return the figure of a target's data, as read back from JSON."""
  with drawing.look():
    figure = Figure(figsize=(9, 4), layout='constrained', dpi=figure_files.DPI)
    target.draw(data, figure)
  return figure
