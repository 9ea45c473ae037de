"""The flag of the directory of measurements, for the programs that share it."""

from absl import flags

flags.DEFINE_string(
  'measurements',
  'runs/hosts',
  'Directory of the measurements: one file for each rate, table.md and '
  'measured.png.',
)
