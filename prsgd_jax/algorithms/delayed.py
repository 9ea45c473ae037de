"""DiLoCo without waiting: delayed, eager and asynchronous outer steps."""

from collections.abc import Sequence
import functools

import jax.numpy as jnp
import optax

from prsgd_jax.algorithms import virtual_clock
from prsgd_jax.algorithms.diloco import DILOCO_OUTER
from prsgd_jax.base import (
  Array,
  ReplicaTransformation,
  Schedule,
  Step,
  chain,
)
from prsgd_jax.checks import (
  MAX_STEPS,
  check_length,
  check_number,
  check_optax,
  check_positive_int,
)
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.schedules import every, rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  evaluate,
  let,
  on_resize,
  outer_update,
  remember,
  require_everyone,
  step,
  sync,
  where,
  zeros,
)


def delayed_diloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  outer: optax.GradientTransformation | None = None,
) -> ReplicaTransformation:
  """DiLoCo whose mean arrives one round late (order C).

  At the end of round r, d_i(r) = x0 - x_i and d_i(-1) = 0:
  x0 <- x0 + outer(mean_j d_j(r - 1));  x_i <- x0. So the steps of round r
  change the model after round r + 1.

  No replica waits for another, because the mean may travel during the next
  round. The ledger overlaps nothing, so it counts the time of the message.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: H, steps of a round, or the schedule of its ends.
    outer: an optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.9.

  Raises: ValueError: if `period` is not an integer >= 1 or a schedule, or if an
  argument has the wrong type.

  Example:
    >>> import optax
    >>> algorithm = delayed_diloco(optax.adamw(1e-3), period=50)

  Reference:
    Kale, Douillard, Donchev 2025, Eager updates for overlapped communication
    and computation in DiLoCo (arXiv 2502.12996), its baseline with delayed
    outer gradients. The equation and the first round were written from memory.
  """
  outer = DILOCO_OUTER if outer is None else outer
  check_optax('outer', outer)
  return algorithm(
    'delayed_diloco',
    remember(x0='params', sent=zeros),
    step(local),
    at(
      rounds(period),
      let(delta='sent', sent=lambda x0, params: x0 - params),
      sync(mean(), 'sent', waits=False),
      outer_update(outer, of='delta', at='x0'),
      let(params='x0'),
    ),
  )


def eager_diloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  outer: optax.GradientTransformation | None = None,
) -> ReplicaTransformation:
  """DiLoCo with eager updates: differences of peers one round late (order C).

  At the end of round r, d_i(r) = x0_i - x_i and d_i(-1) = 0:
  x0_i <- x0_i + outer(d_i(r) / N + sum_{j != i} d_j(r - 1) / N);  x_i <- x0_i.

  Every replica has its own x0 and outer buffers. No replica waits for the mean,
  which may travel during the next round. The ledger counts its time in full.
  On one replica it is `diloco`. With equal and constant differences it is
  `diloco` after the first round.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: H, steps of a round, or the schedule of its ends.
    outer: an optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.9.

  Raises: ValueError: if `period` is not an integer >= 1 or a schedule, or if an
  argument has the wrong type.

  Example:
    >>> import optax
    >>> algorithm = eager_diloco(optax.adamw(1e-3), period=50)

  Reference:
    Kale, Douillard, Donchev 2025, Eager updates for overlapped communication
    and computation in DiLoCo (arXiv 2502.12996). The equation was written from
    memory, as was the first round, in which nothing has arrived yet.
  """
  outer = DILOCO_OUTER if outer is None else outer
  check_optax('outer', outer)
  return algorithm(
    'eager_diloco',
    chain(
      remember(x0='params', others=zeros), on_resize(others=_of_other_peers)
    ),
    step(local),
    at(
      rounds(period),
      let(
        own=lambda x0, params, num_replicas: (x0 - params) / num_replicas,
        delta=lambda own, others: own + others,
        others=lambda x0, params: x0 - params,
      ),
      sync(mean(), 'others', waits=False),
      let(others=lambda others, own: others - own),
      outer_update(outer, of='delta', at='x0'),
      let(params='x0'),
    ),
  )


def _of_other_peers(
  others: Array, num_replicas: int, num_replicas_before: Array
) -> Array:
  """Return the part of N' - 1 peers in a mean, given that of N - 1.

  A single replica has no peers, so that it begins as in the first round.
  """
  before = jnp.maximum(num_replicas_before, 2)
  return others * (1 - 1 / num_replicas) / (1 - 1 / before)


def delayed_nesterov(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  speeds: Sequence[int],
  period: int,
  local_steps: Sequence[int] | None = None,
  buffer_size: int | None = None,
  outer_learning_rate: float = 0.7,
  outer_momentum: float = 0.9,
  activation: float = 0.0,
) -> ReplicaTransformation:
  """Asynchronous DiLoCo: a server with delayed Nesterov momentum (order C).

  Worker i takes H_i steps from the model it last fetched, sends its movement g,
  and fetches the server's model x. For the arrivals s = 0, 1, ... the server
  computes  D <- D + g, and if (s + 1) mod n = 0
  m <- beta m + D / n;  x <- x - eta ((1 - c n + c) beta m + g / n);  D <- 0,
  else  x <- x - eta (c beta m + g / n).

  A step of the engine is one tick. A gradient of worker i takes lcm(v) / v_i
  ticks and uses the batch of the last of them. Arrivals in one tick are
  processed in the order of worker indices, and fetch equal x. Dynamic local
  updates (DyLU), H_i = floor(H v_i / max v) and at least 1, make workers arrive
  at similar times. Every replica stores the server's x, m and D; x is
  evaluated. The learning rate of `local` is evaluated at the tick.

  With n = 1 the server is Nesterov SGD. With equal speeds, n = N and c = 0 it
  is `diloco`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    speeds: v_i, the relative speed of each replica, integers >= 1.
    period: H, steps of the fastest worker between arrivals, >= 1.
    local_steps: H_i, steps of each replica between arrivals, integers >= 1.
      Default: DyLU.
    buffer_size: n, arrivals between two updates of the momentum. Default: N.
    outer_learning_rate: eta, > 0. Default: 0.7.
    outer_momentum: beta, in [0, 1). Default: 0.9.
    activation: c, the fraction of the momentum that is applied between its
      updates, in [0, 1 / n]. Default: 0.

  Raises:
    ValueError: if an argument is out of range, or if `local` communicates; from
      `init`, if the number of speeds is not N.

  Example:
    >>> import optax
    >>> algorithm = delayed_nesterov(
    ...     optax.sgd(0.1), speeds=(1, 1, 2, 4), period=8)

  Reference:
    Liu et al. 2024, Asynchronous local-SGD training for language modeling
    (arXiv 2401.09135), delayed Nesterov and DyLU, after the code of HALoS
    (`opt.py`). Not verified: the numbers of the paper's algorithms. Here the
    clock is virtual. An arrival counts as an all-reduce without waiting, which
    is about one model sent and one received.
  """
  ticks, steps = _clock(speeds, period, local_steps)
  length = [
    check_length('period, local_steps: ticks of a round', d * h)
    for d, h in zip(ticks, steps, strict=True)
  ]
  n = check_positive_int(
    'buffer_size', len(ticks) if buffer_size is None else buffer_size
  )
  eta = check_number(
    'outer_learning_rate', outer_learning_rate, lambda x: x > 0, '> 0'
  )
  beta = check_number(
    'outer_momentum', outer_momentum, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  c = check_number(
    'activation', activation, lambda x: 0 <= x <= 1 / n, f'in [0, 1 / {n}]'
  )

  def full(step: Step, i: int) -> Step:
    """Return whether the arrival of worker i fills the buffer."""
    arrivals = [(step + (j <= i)) // steps for j, steps in enumerate(length)]
    return sum(arrivals) % min(n, MAX_STEPS) == 0

  def accelerated(m: Array, total: Array, step: Step, i: int) -> Array:
    return jnp.where(full(step, i), beta * m + total / float(n), m)

  def moved(server: Array, m: Array, g: Array, step: Step, i: int) -> Array:
    part = jnp.where(full(step, i), 1 - c * n + c, c).astype(m.dtype)
    return server - eta * (part * beta * m + g / float(n))

  def arrival(i: int) -> ReplicaTransformation:
    return at(
      every(length[i]),
      let(
        g=lambda x0, params, replica, num_replicas: jnp.where(
          replica == i, num_replicas * (x0 - params), 0
        )
      ),
      sync(mean(), 'g', waits=False),
      let(
        total=lambda total, g: total + g,
        m=functools.partial(accelerated, i=i),
        server=functools.partial(moved, i=i),
      ),
      let(total=lambda total, step: jnp.where(full(step, i), 0, total)),
    )

  return algorithm(
    'delayed_nesterov',
    remember(server='params', x0='params', m=zeros, total=zeros),
    where(virtual_clock.ends(ticks), step(local)),
    *map(arrival, range(len(length))),
    where(virtual_clock.ends(length), let(params='server', x0='server')),
    evaluate(params='server'),
    require_everyone('delayed_nesterov sums one movement over all N replicas'),
  )


def _clock(
  speeds: Sequence[int], period: int, local_steps: Sequence[int] | None
) -> tuple[list[int], list[int]]:
  """Return the ticks of a step, and the steps of a round, of each replica."""
  ticks = list(virtual_clock.durations(speeds))
  period = check_positive_int('period', period)
  if local_steps is None:
    local_steps = [max(period * v // max(speeds), 1) for v in speeds]
  steps = [check_positive_int('local_steps', h) for h in local_steps]
  if len(steps) != len(speeds):
    raise ValueError(
      f'local_steps must have one number for each of the {len(speeds)} speeds, '
      f'got {len(steps)}'
    )
  return ticks, steps
