"""Flags that select the measures in a figure of runs."""

from absl import flags

from experiments.tools import measures

FLAGS = flags.FLAGS

_RECORDED = 'or any other number in the records'
flags.DEFINE_list(
  'x',
  ['step', 'bytes_sent'],
  'Measures on horizontal axes, one column of panels each: '
  f'{", ".join(measures.X)}, {_RECORDED}.',
)
flags.DEFINE_list(
  'y',
  ['loss', 'test_error'],
  'Measures on vertical axes, one row of panels each: '
  f'{", ".join(measures.Y)}, {_RECORDED}.',
)


def check() -> None:
  """Raise ValueError if --x or --y is empty."""
  for name in ('x', 'y'):
    if not FLAGS[name].value:
      raise ValueError(f'--{name} is empty; pass names, or leave it out')
