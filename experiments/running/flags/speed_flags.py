"""Flags of what programs do to start and to compute faster."""

from absl import flags

from experiments.running.process import compilation_cache
from prsgd_jax.engine import tune_cpu

flags.DEFINE_bool(
  'compilation_cache',
  True,
  'Keep compiled programs in $XDG_CACHE_HOME/prsgd_jax, or '
  '~/.cache/prsgd_jax, so that the next start is faster. The results are '
  'bit-identical. With JAX_COMPILATION_CACHE_DIR set, that directory is used.',
)
flags.DEFINE_bool(
  'tune_cpu',
  True,
  'Where JAX has only CPUs, change settings of glibc and XLA that make '
  'convolutions faster; see pr.engine.tune_cpu. The results are equal up to '
  'rounding, and bit-identical without convolutions.',
)

NAMES = ('compilation_cache', 'tune_cpu')


def apply(values: flags.FlagValues) -> str:
  """Change the settings; call it before anything is compiled.

  Args:
    values: flags of the program.

  Returns:
    A line to print, which says what was tuned; empty if nothing was.
  """
  if values.compilation_cache:
    compilation_cache.use()
  else:
    compilation_cache.turn_off()
  changed = tune_cpu() if values.tune_cpu else ()
  return (
    f'tuned for CPU: {", ".join(changed)} (--notune_cpu)\n' if changed else ''
  )


def given(values: flags.FlagValues) -> list[str]:
  """Return the flags on the command line, for the processes of a sweep."""
  found = (values[name] for name in NAMES)
  return [flag.serialize() for flag in found if flag.present]
