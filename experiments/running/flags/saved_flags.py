"""Save the flags of a run to its directory, and restore them."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from absl import flags

from experiments.running.flags import config as configs
from experiments.running.flags import dotted
from experiments.running.flags.run_config import (
  FIT_REPLICAS,
  OPTIONS,
  RunConfig,
)
from experiments.running.process import process_zero
from experiments.running.records import differences, json_files, records

# Flags that may change when a run is resumed.
MAY_CHANGE = (
  *differences.MAY_CHANGE,
  'block',
  'checkpoint_every',
  'data_dir',
  'eval_every',
  'keep',
  'logger',
  'map_by',
  'num_devices',
  'num_epochs',
  'num_steps',
  'progress',
  'stall_seconds',
  'stream_processes',
  'workdir',
)
_LENGTHS = ('num_steps', 'num_epochs')


def of_run(config: RunConfig) -> dict[str, Any]:
  """Return the value of each flag of a run, None if the run does not use it.

  Args:
    config: the run, which may differ from the flags of the program.
  """
  found = {
    **configs.all_flags(),
    **_option_flags(config.algorithm, config.options),
    'algorithm': config.algorithm,
    'momentum': config.momentum,
    'num_steps': config.num_steps,
    'num_epochs': None if config.num_steps is not None else config.num_epochs,
  }
  if found['init_from'] is not None:
    found['init_from'] = os.path.abspath(found['init_from'])
  return found


def _option_flags(algorithm: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Return the flags that set the options of an algorithm, else None.

  A keyword of the user's own algorithm may have no flag, the name of another
  flag, or another type than its flag. Then it is in --algorithm_options.
  """
  found: dict[str, Any] = dict.fromkeys(OPTIONS)
  if not dotted.is_dotted(algorithm):
    return {**found, **options}
  rest = []
  for name, value in options.items():
    if name in OPTIONS and _is_of(flags.FLAGS[name].flag_type(), value):
      found[name] = value
    else:
      rest.append(f'{name}={value}')
  return {**found, 'algorithm_options': rest or None}


# Type of a flag -> type of its value in JSON.
_KINDS: dict[str, type | tuple[type, ...]] = {
  'bool': bool,
  'comma separated list of strings': list,
  'float': (int, float),
  'int': int,
  'string': str,
  'string enum': str,
}


def restore(values: flags.FlagValues, workdir: pathlib.Path) -> None:
  """Set the flags to the saved values of a run.

  Args:
    values: flags of the program; a flag on the command line is kept.
    workdir: directory of the run.

  Raises:
    ValueError: if the directory holds no run, a flag on the command line must
      not change, or a saved value has the wrong type.
  """
  config = process_zero.decide('the saved flags', lambda: _read(workdir))
  description = config['description']
  algorithm = description.get('algorithm', values.algorithm)
  options = _open_options(values, description.get('options', {}))
  saved = {
    **config['flags'],
    **_option_flags(algorithm, options),
    'algorithm': algorithm,
  }
  given = {name for name in saved if name in values and values[name].present}
  if 'algorithm_options' in given:
    given.remove('algorithm_options')
    # Merged here, because they are compared with the run's after parsing.
    own = [*values.algorithm_options, *(saved['algorithm_options'] or ())]
    saved['algorithm_options'] = own
  fixed = given - set(MAY_CHANGE) - set(_resized(values, saved))
  for name in sorted(fixed):
    if _plain(values[name].value) != _plain(saved[name]):
      text = (saved[name], values[name].value)
      raise ValueError(differences.refusal(workdir, name, *text))
  if given & set(_LENGTHS):
    given |= set(_LENGTHS)
  for name, value in saved.items():
    if name in values and name not in given and value is not None:
      flag = values[name]
      if not _is_of(flag.flag_type(), value):
        raise json_files.damaged(
          workdir / records.CONFIG,
          f'{name}: expected {flag.flag_type()}, got {value!r}',
        )
      if name != 'workdir' and _plain(flag.value) != _plain(value):
        flag.value = value
        flag.present = 1
        flag.using_default_value = False


def _read(workdir: pathlib.Path) -> records.Record:
  if not (workdir / records.CONFIG).exists():
    raise ValueError(f'{workdir} holds no run; leave out --resume')
  return records.read_config(workdir)


def _resized(
  values: flags.FlagValues, saved: Mapping[str, Any]
) -> tuple[str, ...]:
  """Return the flags that may change because --num_replicas does."""
  flag = values['num_replicas']
  if not flag.present or flag.value == saved.get(flag.name):
    return ()
  return (flag.name, *FIT_REPLICAS)


def _is_of(kind: str, value: Any) -> bool:
  """Whether a JSON value has the type of a flag; a bool is not a number."""
  if isinstance(value, bool):
    return kind == 'bool'
  if isinstance(value, list) and not all(isinstance(x, str) for x in value):
    return False
  return isinstance(value, _KINDS.get(kind, object))


def _open_options(
  values: flags.FlagValues, options: Mapping[str, Any]
) -> dict[str, Any]:
  """Return the options of a run that --algorithm_options does not set."""
  texts = values.algorithm_options or ()
  given = {text.partition('=')[0] for text in texts}
  return {n: v for n, v in options.items() if n not in given}


def _plain(value: Any) -> Any:
  """Return a comparable value of a flag: numbers for text, absolute paths."""
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, str):
    try:
      return float(value)
    except ValueError:
      return os.path.abspath(value) if os.sep in value else value
  return value
