"""Flags of the measures that a figure of runs shows."""

from absl import flags

from experiments.tools import measures

FLAGS = flags.FLAGS

_RECORDED = 'or any number that the runs recorded'
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
  """Raise ValueError unless there are axes to draw."""
  for name in ('x', 'y'):
    if not FLAGS[name].value:
      raise ValueError(f'--{name} is empty; pass some names, or leave it out')
