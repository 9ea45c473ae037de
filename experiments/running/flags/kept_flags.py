"""Flags of programs that keep their results: repeat runs, or redraw them."""

from absl import flags

flags.DEFINE_bool('again', False, 'Repeat experiments that are already done.')
flags.DEFINE_bool(
  'redraw',
  False,
  'Redraw the figures and rewrite the page from saved results; run nothing.',
)
