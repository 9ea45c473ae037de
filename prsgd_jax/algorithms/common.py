"""The stage at the end of a round: the argument `average` of algorithms."""

from collections.abc import Callable
from typing import Any

import optax

from prsgd_jax.base import ReplicaTransformation, chain
from prsgd_jax.mixing.mixings import Mixing, mean
from prsgd_jax.stages import kept, on_resize, sync

# `average` of an algorithm without a `mixing`: a stage on `params`.
AVERAGE = sync(mean())
# `average` of an algorithm with a `mixing`: mixing -> stage, by default `sync`.
Average = Callable[[Mixing], ReplicaTransformation]


def average_by(average: Any, mixing: Mixing) -> ReplicaTransformation:
  """Return `average(mixing)`, checked to be a stage.

  Raises:
    ValueError: if `average` is not a function from a mixing to a stage.
  """
  made = average(mixing) if callable(average) else average
  if not callable(average) or not isinstance(made, ReplicaTransformation):
    raise ValueError(
      'average expects a function from the mixing to a stage, such as pr.sync '
      "or lambda W: pr.sync(W, ('params', 'opt_state')), got "
      f'{average!r}'
    )
  return made


def independent(
  local: optax.GradientTransformation | ReplicaTransformation,
) -> ReplicaTransformation:
  """Return the stage by which independent runs stay so when N changes.

  Put it last, because a stage before others would change their random keys. A
  `local` that is a stage may communicate, and then decides by itself.
  """
  if isinstance(local, optax.GradientTransformation):
    return on_resize(params=kept(), opt_state=kept())
  return chain()
