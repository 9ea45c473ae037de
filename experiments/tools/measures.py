"""What figures can show: the numbers of the records, with units and scales."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.running.records.records import Record


class Scale(NamedTuple):
  """How a value of the records is shown.

  Attributes:
    title: text on the axis, with the unit.
    unit: one unit of the axis in the units of the records.
    scale: 'linear', 'log', or 'zero and log', a logarithm with a place for 0.
    error_of: the accuracy of which this is the error, if it is one.
  """

  title: str
  unit: float = 1
  scale: str = 'linear'
  error_of: str = ''


SCALES = ('linear', 'log', 'zero and log')
X = {
  'step': Scale('steps'),
  'epoch': Scale('epochs of all replicas together'),
  'rounds': Scale('communication rounds'),
  'bytes_sent': Scale('MiB sent per replica', 2**20, 'zero and log'),
  'modeled_seconds': Scale('modeled time, s'),
  'seconds': Scale('measured time, s'),
}
Y = {
  'loss': Scale('training loss of the replicas, nats', scale='log'),
  'accuracy': Scale('training accuracy of the replicas, %', 0.01),
  'test_loss': Scale('test loss of their average, nats', scale='log'),
  'test_accuracy': Scale('test accuracy of their average, %', 0.01),
  'test_error': Scale(
    'test error of their average, %', 0.01, 'log', 'test_accuracy'
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
  """How a number of the records is shown.

  Args:
    histories: the records of each run.
    flag: that has the name, for the error.
    name: in `known`, or of any number in the records; one inside another has a
      name such as 'bytes_by_tier.global'.
    known: `X` or `Y`.

  Raises:
    ValueError: if no record has it.
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
  """Step -> the values in the units shown, where a record has all of them."""
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
  """The leaves of nested mappings, by their names joined with points.

  Args:
    tree: such as a record.
    without: names to leave out.
    prefix: of all names.

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
