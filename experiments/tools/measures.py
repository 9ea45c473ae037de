"""Measures that figures show: numbers of the records, with units and scales."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.running.records.records import Record


class Scale(NamedTuple):
  """Form in which an axis shows a value of the records.

  Attributes:
    title: label of the axis, with the unit in brackets.
    unit: size of one unit of the axis, in units of the records.
    scale: 'linear', 'log', or 'zero and log', a logarithm that can show 0.
    error_of: name of an accuracy if this measure is its error, else ''.
  """

  title: str
  unit: float = 1
  scale: str = 'linear'
  error_of: str = ''


SCALES = ('linear', 'log', 'zero and log')
X = {
  'step': Scale('step'),
  'epoch': Scale('epoch, all replicas together'),
  'rounds': Scale('communication rounds'),
  'bytes_sent': Scale('sent per replica [MiB]', 2**20, 'zero and log'),
  'modeled_seconds': Scale('modeled time [s]'),
  'seconds': Scale('measured time [s]'),
}
Y = {
  'loss': Scale('training loss of replicas [nats]', scale='log'),
  'accuracy': Scale('training accuracy of replicas [%]', 0.01),
  'test_loss': Scale('test loss of averaged model [nats]', scale='log'),
  'test_accuracy': Scale('test accuracy of averaged model [%]', 0.01),
  'test_error': Scale(
    'test error of averaged model [%]', 0.01, 'log', 'test_accuracy'
  ),
  'consensus_distance': Scale(
    'consensus distance\nmean $|x_i - \\bar x|^2$',
    scale='zero and log',
  ),
  'learning_rate': Scale('learning rate', scale='log'),
}


def find(
  histories: Iterable[Sequence[Record]],
  flag: str,
  name: str,
  known: Mapping[str, Scale],
) -> Scale:
  """Return the form in which an axis shows a number of the records.

  Args:
    histories: records of each run.
    flag: name of the flag, for the error.
    name: name in `known`, or of any number in the records. A nested number has
      a name such as 'bytes_by_tier.global'.
    known: `X` or `Y`.

  Raises:
    ValueError: if no record has the number.
  """
  if name in known:
    return known[name]
  recorded = {
    key: None
    for history in histories
    for record in history
    for key, value in flat(record)
    if isinstance(value, int | float)
  }
  if name not in recorded:
    names = dict.fromkeys((*known, *recorded))
    raise ValueError(f'unknown --{flag}={name}; use one of {", ".join(names)}')
  return {**X, **Y}.get(name, Scale(name))


def points(
  history: Sequence[Record], shown: Sequence[tuple[str, Scale]]
) -> dict[int, list[float]]:
  """Return step -> values in units of the axes, if a record has all of them.

  Args:
    history: records of a run.
    shown: (name, form) of each value.
  """
  found = {}
  for record in history:
    values = dict(flat(record))
    keys = [scale.error_of or name for name, scale in shown]
    if any(values.get(key) is None for key in keys):
      continue
    found[record['step']] = [
      (1 - values[key] if scale.error_of else values[key]) / scale.unit
      for key, (_, scale) in zip(keys, shown, strict=True)
    ]
  return found


def flat(
  tree: Mapping[str, Any], without: Sequence[str] = (), prefix: str = ''
) -> Iterable[tuple[str, Any]]:
  """Return the leaves of nested mappings, by names joined with points.

  Args:
    tree: nested mapping, such as a record.
    without: names to omit at the top level.
    prefix: text in front of all names.

  Example:
    >>> list(flat({'a': 1, 'b': {'c': 2}}))
    [('a', 1), ('b.c', 2)]
  """
  for name, value in tree.items():
    if name in without:
      continue
    if isinstance(value, Mapping):
      yield from flat(value, (), f'{prefix}{name}.')
    else:
      yield prefix + name, value
