"""Flags of the measures that a figure of runs shows."""

from absl import flags

from experiments.tools import measures

FLAGS = flags.FLAGS

_RECORDED = 'or any number that the runs recorded'
flags.DEFINE_list(
  'x', ['step', 'bytes_sent'], f'Some of {", ".join(measures.X)}, {_RECORDED}.'
)
flags.DEFINE_list(
  'y', ['loss', 'test_error'], f'Some of {", ".join(measures.Y)}, {_RECORDED}.'
)


def check() -> None:
  """Raises ValueError unless there are axes to draw."""
  for name in ('x', 'y'):
    if not FLAGS[name].value:
      raise ValueError(f'--{name} is empty; pass some names, or leave it out')
