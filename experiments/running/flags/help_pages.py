"""Text of --help and --version, and suggestions for misspelled names.

`train.py --algorithm=X --help` starts with the options of X, which come from
its docstring.
"""

from collections.abc import Callable, Iterable, Sequence
import difflib
import os
import pathlib
import re
import sys
import textwrap
from typing import Any

from absl import flags

from experiments.running.flags import algorithm_flags
from experiments.running.process import exit_codes
from prsgd_jax import versions

ASKS = ('help', 'helpshort', 'helpfull', 'h', '?')
PRESETS = pathlib.Path(__file__).parents[2] / 'presets'
# Module that defines flags -> title of their group, in this order.
_TITLES = {
  'config': 'Run',
  'data': 'Data',
  'tasks': 'Model',
  'optimizers': 'Optimizer of every replica',
  'learning_rates': 'Learning rate',
  'averages': 'Averages',
  'fault_flags': 'Simulated faults',
  'network': 'Modeled time: machines and links',
  'plan_flags': 'Plan',
  'process_flags': 'Several processes',
  'cli': 'Files',
  'speed_flags': 'Files',
}
_AVERAGES = (
  'when',
  'local',
  'average_mixing',
  'average_codec',
  'average_robust',
  'buffers',
  'batch_stats',
)


def answer(argv: list[str], main: Callable[..., None]) -> str | None:
  """Return the text of --help or --version, None if neither is given.

  Args:
    argv: the program and its arguments.
    main: main function of the program.

  Raises:
    flags.Error: if another flag is invalid.
  """
  if '--' in argv:  # after which another program has its own flags
    argv = argv[: argv.index('--')]
  names = [argument.lstrip('-') for argument in argv[1:] if argument[:1] == '-']
  if 'version' in names:
    return versions.line()
  if not set(ASKS) & set(names):
    return None
  others = [a for a in argv if a.lstrip('-') not in ASKS or a[:1] != '-']
  flags.FLAGS(others, known_only=True)
  return _page(main)


def _page(main: Callable[..., None]) -> str:
  """Return the docstring of a program, then its flags in groups."""
  module = main.__module__
  owner = sys.argv[0] if module == '__main__' else module
  known = flags.FLAGS.get_key_flags_for_module(owner)
  doc = (sys.modules[module].__doc__ or '').strip()
  groups: dict[str, list[flags.Flag[Any]]] = {'This program': []}
  groups |= {title: [] for title in _TITLES.values()}
  options = []
  for flag in known:
    if flag.name in algorithm_flags.FLAG_KINDS:
      options.append(flag)
      continue
    if _is_alias(flag):
      continue
    defined = flags.FLAGS.find_module_defining_flag(flag.name) or ''
    part = 'averages' if flag.name in _AVERAGES else defined.rpartition('.')[2]
    groups[_TITLES.get(part, 'This program')].append(flag)
  parts = [doc, *_algorithm_part(options)]
  for title, found in groups.items():
    if found:
      parts.append('\n'.join([f'{title}:', *map(_entry, found)]))
  # Only a program that saves its work on a signal has codes to act on.
  if 'signals' in vars(sys.modules[module]):
    parts.append('\n'.join(['Exit codes:', *exit_codes.lines()]))
  return '\n\n'.join(parts)


def _algorithm_part(options: Iterable[flags.Flag[Any]]) -> list[str]:
  """Return the options of the selected algorithm, or the list of names."""
  options = list(options)
  if not options:
    return []
  algorithm = flags.FLAGS['algorithm']
  if not algorithm.present or algorithm.value is None:
    names = ', '.join(algorithm_flags.ALGORITHMS)
    text = f'{names}. --algorithm=X --help prints the options of X.'
    return [f'Algorithms:\n{_wrapped(text)}']
  name = algorithm_flags.find(str(algorithm.value))
  lines = [f'Options of {name}:']
  for keyword in algorithm_flags.keywords(name):
    if keyword not in algorithm_flags.PROVIDED:
      flag = algorithm_flags.flag_of(name, keyword)
      text = algorithm_flags.documented(name, keyword)
      lines.append(f'  --{flag}\n{_wrapped(text)}'.rstrip())
  if len(lines) == 1:
    lines.append('  none')
  return ['\n'.join(lines)]


def _entry(flag: flags.Flag[Any]) -> str:
  short = [
    f'--{other.name}'
    for other in map(flags.FLAGS.__getitem__, flags.FLAGS)
    if _is_alias(other) and other.help == f'Alias for --{flag.name}.'
  ]
  default = '' if flag.default in (None, []) else f'={_text(flag.default)}'
  head = ', '.join([f'  --{flag.name}{default}', *short])
  text = flag.help
  if values := getattr(flag.parser, 'enum_values', None):
    # absl writes <a|b>: before the text, which cannot be wrapped.
    names = ', '.join(values)
    text = f'One of {names}. {text.partition(">: ")[2]}'
  return f'{head}\n{_wrapped(text)}'


def _text(default: Any) -> str:
  return ','.join(default) if isinstance(default, list) else str(default)


def _wrapped(text: str) -> str:
  return textwrap.fill(
    ' '.join(text.split()),
    79,
    initial_indent=' ' * 6,
    subsequent_indent=' ' * 6,
  )


def _is_alias(flag: flags.Flag[Any]) -> bool:
  return (flag.help or '').startswith('Alias for --')


def explain_unknown_flag(name: str, argv: Sequence[str]) -> str:
  """Return the error for an unknown flag, with the closest known one.

  Args:
    name: the unknown flag, without dashes.
    argv: the program and its arguments.
  """
  said = f"Unknown command line flag '{name}'"
  programs = [word for word in argv[1:] if word.endswith('.py')]
  if programs and '--' not in argv:  # of launch.py
    return f'{said}; put -- before {programs[0]}'
  for flag in map(flags.FLAGS.__getitem__, flags.FLAGS):
    values = getattr(flag.parser, 'enum_values', ())
    if name in values:
      return f'{said}; did you mean --{flag.name}={name}?'
  algorithms = (*algorithm_flags.ALGORITHMS, *algorithm_flags.ALIASES)
  if name in algorithms and 'algorithm' in flags.FLAGS:
    return f'{said}; did you mean --algorithm={name}?'
  close = difflib.get_close_matches(name, flags.FLAGS, n=1)
  said += f'; did you mean --{close[0]}?' if close else ''
  if re.search(r'(^| )--?algorithm[= ][^ ]*:', ' '.join(argv)):
    said += (
      '; pass an argument of your own algorithm as '
      f'--algorithm_options={name}=VALUE'
    )
  return said


def explain_missing_preset(path: str) -> str:
  """Return the error for a missing preset, with the closest existing one.

  Args:
    path: the missing file as given, with or without quotes.
  """
  found = {p.stem: os.path.relpath(p) for p in PRESETS.glob('*.flags')}
  name = pathlib.Path(path.strip('\'"')).stem
  said = f'no preset {path}'
  close = difflib.get_close_matches(name, found, n=1)
  if close:
    return f'{said}; did you mean {found[close[0]]}?'
  where = os.path.relpath(PRESETS)
  return f'{said}; {where} has {len(found)}, such as demo.flags'
