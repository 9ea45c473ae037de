"""Flags of programs that work in pieces, each of which a later call resumes."""

from absl import flags

from experiments.running.process import exit_codes

flags.DEFINE_float(
  'minutes',
  None,
  'Minutes after which the program saves its state and exits with code '
  f'{exit_codes.STOPPED} if there is more to do. Repeat the command to resume. '
  'In reproduce >= 2, because a run first compiles; in gpu_benchmark > 0. '
  'Default: no limit in reproduce, 9 in gpu_benchmark.',
)
flags.DEFINE_bool(
  'status',
  False,
  'Print how far the work is, and run nothing. In reproduce these are the runs '
  'of --scale=long or full, with the estimated hours left; curves so far are '
  'drawn.',
)


def seconds(values: flags.FlagValues, *, least: float) -> float | None:
  """Return the seconds of --minutes, None if it is not given.

  Args:
    values: the parsed flags.
    least: the smallest number of minutes.

  Raises:
    ValueError: if there are fewer minutes, or none.
  """
  minutes = values.minutes
  if minutes is None:
    return None
  if not (minutes >= least and minutes > 0):
    bound = f'>= {least:g}' if least else '> 0'
    raise ValueError(f'--minutes must be {bound}, got {minutes:g}')
  return 60 * float(minutes)
