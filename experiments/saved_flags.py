"""The flags of a run, as its directory keeps them and gives them back."""

import os
import pathlib
from typing import Any

from absl import flags

from experiments import config as configs
from experiments import differences, json_files, records
from experiments.run_config import OPTIONS, RunConfig

# What a resumed run may have otherwise than before.
MAY_CHANGE = (
  *differences.MAY_CHANGE,
  'checkpoint_every',
  'data_dir',
  'eval_every',
  'keep',
  'logger',
  'num_devices',
  'num_epochs',
  'num_steps',
  'progress',
  'workdir',
)
_LENGTHS = ('num_steps', 'num_epochs')


def of_run(config: RunConfig) -> dict[str, Any]:
  """Returns the flags that make a run, None for those that it does not use.

  Args:
    config: the run, which may differ from the flags of the program.
  """
  found = {
    **configs.all_flags(),
    **dict.fromkeys(OPTIONS),
    **config.options,
    'algorithm': config.algorithm,
    'momentum': config.momentum,
    'num_steps': config.num_steps,
    'num_epochs': None if config.num_steps is not None else config.num_epochs,
  }
  if found['init_from'] is not None:
    found['init_from'] = os.path.abspath(found['init_from'])
  return found


# What flags of a type are in JSON.
_KINDS: dict[str, type | tuple[type, ...]] = {
  'bool': bool,
  'comma separated list of strings': list,
  'float': (int, float),
  'int': int,
  'string': str,
  'string enum': str,
}


def restore(values: flags.FlagValues, workdir: pathlib.Path) -> None:
  """Sets the flags to those of the run in a directory.

  Args:
    values: the flags; those given stay as they are.
    workdir: of the run.

  Raises:
    ValueError: if there is no run, or a flag is given that cannot change, or
      the file has a value of another kind.
  """
  if not (workdir / records.CONFIG).exists():
    raise ValueError(f'there is no run in {workdir}; leave out --resume')
  config = records.read_config(workdir)
  description = config['description']
  options = dict.fromkeys(configs.OPTIONS)
  saved = {
    **config['flags'],
    **options,
    **description.get('options', {}),
    'algorithm': description.get('algorithm', values.algorithm),
  }
  given = {name for name in saved if name in values and values[name].present}
  for name in sorted(given - set(MAY_CHANGE)):
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


def _is_of(kind: str, value: Any) -> bool:
  """Whether a value is what flags of a type are in JSON; True is no number."""
  if isinstance(value, bool):
    return kind == 'bool'
  if isinstance(value, list) and not all(isinstance(x, str) for x in value):
    return False
  return isinstance(value, _KINDS.get(kind, object))


def _plain(value: Any) -> Any:
  """A value of a flag to compare: numbers in lists as such, paths absolute."""
  if isinstance(value, list | tuple):
    return [_plain(inner) for inner in value]
  if isinstance(value, str):
    try:
      return float(value)
    except ValueError:
      return os.path.abspath(value) if os.sep in value else value
  return value
