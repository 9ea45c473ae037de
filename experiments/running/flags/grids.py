"""Expand --run and --grid of a sweep into runs."""

from collections.abc import Sequence
import copy
import itertools
from typing import NamedTuple

from absl import flags

from experiments.running.flags import (
  algorithm_flags,
  averages,
  config,
  dotted,
  faults,
  run_specs,
)
from experiments.running.records import slugs

flags.DEFINE_multi_string(
  'grid',
  [],
  'Axis of the grid, FLAG=VALUE,VALUE for any flag of train.py, such as '
  'seed=0,1,2',  # absl ends the sentence
)

# Flags of train.py that are not settings of a run.
_NOT_SETTINGS = (
  'algorithm', 'algorithm_options', 'progress', 'data_dir', 'workdir', 'keep',
  'stall_seconds',
)  # fmt: skip
# Those of them that the process of a run receives.
_PASSED_ON = {'data_dir', 'keep', 'stall_seconds'}


class Axis(NamedTuple):
  """Flags that change together, and their values."""

  names: tuple[str, ...]
  values: tuple[tuple[str, ...], ...]


class Point(NamedTuple):
  """One run of a grid.

  Attributes:
    config: the run.
    values: name of each axis -> value as text; '' if the axis is an option
      that the run's algorithm does not have.
    flags: all flags, including the values on the axes.
  """

  config: config.RunConfig
  values: dict[str, str]
  flags: flags.FlagValues

  def slug(self) -> str:
    """Return the name of the run's directory."""
    places = [
      f'-{name}{value}'
      for name, value in self.values.items()
      if not is_option(name)
    ]
    return slugs.shorten(self.config.slug() + ''.join(places))


def is_option(name: str) -> bool:
  """Whether an axis is an option of an algorithm, not a setting of all runs."""
  # Or not a flag, because a keyword of the user's own algorithm has none.
  return name in config.OPTIONS or name not in flags.FLAGS


def parse_axis(text: str, own: Sequence[str] = ()) -> Axis:
  """Return the axis of a value of --grid.

  Args:
    text: 'seed=0,1', or 'batch_size:seed=8:0,16:1' for flags that change
      together. A list has + between its values.
    own: keywords of the user's own algorithms, which may also be axes.

  Raises:
    ValueError: if the text has another form, an unknown flag, or a value twice.

  Example:
    >>> parse_axis('seed=0,1')
    Axis(names=('seed',), values=(('0',), ('1',)))
  """
  left, equals, right = text.partition('=')
  names = tuple(config.ALIASES.get(n, n) for n in left.split(':'))
  if not equals:
    raise ValueError(
      f'--grid={text}: expected FLAG=VALUE,VALUE, such as seed=0,1,2'
    )
  settings = [n for n in config.all_flags() if n not in _NOT_SETTINGS]
  settings += [n for n in own if n not in settings]
  for name in names:
    if name not in settings:
      raise ValueError(
        f'--grid={text}: {name!r} is not a setting of a run; use one of '
        f'{", ".join(settings)}'
      )
  together = len(names) > 1
  values = [tuple(v.split(':')) if together else (v,) for v in right.split(',')]
  for value in values:
    if len(value) != len(names):
      raise ValueError(
        f'--grid={text}: expected {left.count(":") + 1} values with : between, '
        f'got {":".join(value)!r}'
      )
    if values.count(value) > 1:
      raise ValueError(f'--grid={text}: {":".join(value)!r} is given twice')
  return Axis(names, tuple(values))


def points(
  runs: Sequence[str], grid: Sequence[str], values: flags.FlagValues
) -> list[Point]:
  """Return all runs of a grid, in the order of --run and --grid.

  An axis that is an option of an algorithm applies to each run whose algorithm
  has the option, unless the run sets it.

  Args:
    runs: values of --run: algorithms with options.
    grid: values of --grid: axes.
    values: all other flags.

  Raises:
    ValueError: if a value is wrong, or two runs are equal.
  """
  if not runs:
    raise ValueError(
      '--run is missing; pass one, such as --run=pr_sgd,period=4'
    )
  own = _own_keywords(runs)
  axes = [parse_axis(text, own) for text in grid]
  names = [name for axis in axes for name in axis.names]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f'--{name} is on two axes of the grid')
    if not any(_applies(name, run) for run in runs):
      raise ValueError(
        f'--grid={name}: does nothing, because no --run has it or leaves it '
        'open'
      )
  found = [point for run in runs for point in _points(run, axes, values)]
  seen: dict[str, Point] = {}
  for point in found:
    key = str((point.config, [_value(point, name) for name in names]))
    if key in seen:
      raise ValueError(
        f'{point.slug()} and {seen[key].slug()} are the same run; leave one out'
      )
    seen[key] = point
  return found


def _points(
  run: str, axes: Sequence[Axis], values: flags.FlagValues
) -> list[Point]:
  open_axes = [
    axis.values
    if any(_applies(name, run) for name in axis.names)
    else (('',) * len(axis.names),)
    for axis in axes
  ]
  names = [name for axis in axes for name in axis.names]
  found = []
  for combination in itertools.product(*open_axes):
    texts = itertools.chain.from_iterable(combination)
    place = {
      name: text if _applies(name, run) else ''
      for name, text in zip(names, texts, strict=True)
    }
    options = [
      f',{n}={v}' for n, v in place.items() if is_option(n) and _applies(n, run)
    ]
    others = {n: v for n, v in place.items() if not is_option(n)}
    changed = _set(values, others)
    (run_config,) = run_specs.parse_runs([run + ''.join(options)], changed)
    found.append(Point(run_config, place, changed))
  return found


def _own_keywords(runs: Sequence[str]) -> list[str]:
  """Return the keywords of the user's own algorithms that have no flag."""
  algorithms = [algorithm_flags.find(run.partition(',')[0]) for run in runs]
  return [
    name
    for algorithm in filter(dotted.is_dotted, algorithms)
    for name in algorithm_flags.own_flags(algorithm)
    if name not in flags.FLAGS
  ]


def _applies(name: str, run: str) -> bool:
  """Whether an axis applies to a run."""
  if not is_option(name):
    return True
  algorithm, *pairs = run.split(',')
  algorithm = algorithm_flags.find(algorithm)
  given = {pair.partition('=')[0] for pair in pairs}
  # A run has only one of --when and the flag it replaces.
  either = {'when', algorithm_flags.scheduled(algorithm)}
  if given & (either if name in either else {name}):
    return False
  of_any = (*averages.OPTIONS, *faults.OPTIONS)
  return name in (*of_any, *algorithm_flags.own_flags(algorithm))


def _set(values: flags.FlagValues, changes: dict[str, str]) -> flags.FlagValues:
  """Return a copy of the flags with changes, given as text."""
  changed = copy.deepcopy(values)
  arguments = []
  for name, text in changes.items():
    is_list = values[name].flag_type() == 'comma separated list of strings'
    arguments.append(f'--{name}={text.replace("+", ",") if is_list else text}')
  try:
    changed(['sweep.py', *arguments])
  except flags.Error as error:
    raise ValueError(f'--grid: {error}') from error
  return changed


def _value(point: Point, name: str) -> object:
  return None if is_option(name) else point.flags[name].value


def command(point: Point) -> list[str]:
  """Return the flags of train.py for a run of the grid."""
  algorithm = point.config.algorithm
  given = [f'--algorithm={algorithm}']
  own: list[str] = []
  if dotted.is_dotted(algorithm):
    own = [*algorithm_flags.keywords(algorithm)]
  pairs = {n: f'{n}={v}' for n, v in point.config.options.items()}
  given += [f'--{pair}' for n, pair in pairs.items() if n not in own]
  if options := [pair for n, pair in pairs.items() if n in own]:
    given.append(f'--algorithm_options={",".join(options)}')
  for name in config.all_flags():
    flag = point.flags[name]
    skipped = {*_NOT_SETTINGS, *config.OPTIONS} - _PASSED_ON
    if name not in skipped and flag.present and flag.value is not None:
      given.append(flag.serialize())
  return given
