"""Runs of the presets of single algorithms on the digits."""

import pathlib
from typing import Any

from absl import flags

from experiments.papers import target
from experiments.running.flags import config, run_config

PRESETS = pathlib.Path(__file__).parents[1] / 'presets'


def on_digits() -> dict[str, pathlib.Path]:
  """Return the preset of each algorithm on the digits, by algorithm."""
  found = {}
  for path in sorted(PRESETS.glob('digits_*.flags')):
    lines = path.read_text().splitlines()
    for algorithm in [x for x in lines if x.startswith('--algorithm=')]:
      found[algorithm.partition('=')[2]] = path
  return found


def make(path: pathlib.Path, **fields: Any) -> run_config.RunConfig:
  """Return the run of a preset of one algorithm.

  Args:
    path: the preset.
    **fields: flags of train.py, in place of the flags in the preset.

  Raises:
    ValueError: if the run is invalid.
  """
  lines = [x[2:] for x in path.read_text().splitlines() if x.startswith('--')]
  given = {k: value for k, _, value in (x.partition('=') for x in lines)}
  of_runs = run_config.RunConfig.__dataclass_fields__.keys()
  values = {
    name: flags.FLAGS[name].parser.parse(value or 'true')
    for name, value in given.items()
    if name in of_runs or name in config.OPTIONS
  }
  algorithm = str(values.pop('algorithm'))
  options = {k: x for k, x in values.items() if k in config.OPTIONS}
  own = {k: x for k, x in values.items() if k not in options}
  if own.get('optimizer', 'sgd') != 'sgd':
    own['momentum'] = 0.0  # because it belongs to SGD
  return target.make_config(algorithm, options, **{**own, **fields})
