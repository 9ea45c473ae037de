"""The defaults of two choices that the papers leave open (see the package)."""

from prsgd_jax.schedules import never

PARAMS = ('params',)
NEVER = never()
