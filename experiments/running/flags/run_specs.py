"""Parse --run: an algorithm and its options, such as pr_sgd,period=4."""

from collections.abc import Sequence
import dataclasses
import difflib
from typing import Any

from absl import flags

from experiments.running.flags import (
  algorithm_flags,
  averages,
  config,
  faults,
)

FLAGS = flags.FLAGS

flags.DEFINE_multi_string(
  'run',
  [],
  'Algorithm and options of one run, such as pr_sgd,period=4. A list has + '
  'between its values',  # absl ends the sentence
)


def parse_runs(
  given: Sequence[str], values: flags.FlagValues = FLAGS
) -> list[config.RunConfig]:
  """Return a config for every run.

  Args:
    given: values of --run, each an algorithm and its options, such as
      'pr_sgd,period=4'.
    values: flags that apply to all runs.

  Raises:
    ValueError: if `given` is empty, or a run is invalid or given twice.
  """
  if not given:
    raise ValueError(
      '--run is missing; pass one, such as --run=pr_sgd,period=4'
    )
  for name in ('algorithm', 'algorithm_options', *config.OPTIONS):
    if values[name].present:
      raise ValueError(
        f'--{name} belongs to one run; write --run=ALGORITHM,{name}=...'
      )
  common = config.from_flags(values, algorithm='ssgd')
  run_configs = [_parse_run(text, common) for text in given]
  labels = [c.label() for c in run_configs]
  for label in labels:
    if labels.count(label) > 1:
      raise ValueError(f'--run={label!r} is given twice')
  return run_configs


def _parse_run(text: str, common: config.RunConfig) -> config.RunConfig:
  given, *pairs = text.split(',')
  algorithm = algorithm_flags.find(given)
  own = (
    *algorithm_flags.own_flags(algorithm),
    *averages.OPTIONS,
    *faults.OPTIONS,
  )
  options: dict[str, Any] = {}
  for pair in pairs:
    name, _, value = pair.partition('=')
    if name in options:
      raise ValueError(f'--run={text}: {name} is given twice')
    if name not in (*config.OPTIONS, *own) or not value:
      close = difflib.get_close_matches(name, own, n=1) if value else []
      meant = f'; did you mean {close[0]}?' if close else ''
      raise ValueError(
        f'--run={text}: expected option=value with an option of {algorithm}, '
        f'one of {", ".join(own)}; got {pair!r}{meant}'
      )
    try:
      is_flag = name in config.OPTIONS
      options[name] = FLAGS[name].parser.parse(value) if is_flag else value
    except ValueError as error:
      raise ValueError(f'--run={text}: {name}: {error}') from None
  options = algorithm_flags.canonical(algorithm, options)
  changed = dataclasses.replace(common, algorithm=algorithm, options=options)
  return config.check(changed)
