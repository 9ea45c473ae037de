"""Flag of the programs that keep what they compile on disk."""

from absl import flags

from experiments.running.process import compilation_cache

flags.DEFINE_bool(
  'compilation_cache',
  True,
  'Keep compiled programs in $XDG_CACHE_HOME/prsgd_jax, or '
  '~/.cache/prsgd_jax, so that the next start is faster. The results are '
  'bit-identical. With JAX_COMPILATION_CACHE_DIR set, that directory is used.',
)

NAME = 'compilation_cache'


def apply(values: flags.FlagValues) -> None:
  """Turn the cache on or off; call this before anything is compiled.

  Args:
    values: flags of the program.
  """
  if values[NAME].value:
    compilation_cache.use()
  else:
    compilation_cache.turn_off()


def given(values: flags.FlagValues) -> list[str]:
  """Return the flag on the command line, for the processes of a sweep."""
  flag = values[NAME]
  return [flag.serialize()] if flag.present else []
