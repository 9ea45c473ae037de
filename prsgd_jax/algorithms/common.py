"""What the replicas do at the end of a round unless told otherwise."""

from prsgd_jax.mixing import mean
from prsgd_jax.stages import sync

AVERAGE = sync(mean())

# For the algorithms that are not on registers yet.
from prsgd_jax.schedules import never  # noqa: E402

PARAMS = ('params',)
NEVER = never()
