"""DiLoCo that survives bad or missing replicas: averages of another kind."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from prsgd_jax.algorithms.diloco import DILOCO_OUTER, outer_rounds
from prsgd_jax.base import Array, ReplicaTransformation, Schedule
from prsgd_jax.checks import (
  MAX_STEPS,
  check_number,
  check_positive_int,
  check_positive_ints,
  check_step,
)
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.schedules import every
from prsgd_jax.stages import (
  algorithm,
  at,
  first_steps,
  let,
  outer_update,
  per_replica,
  remember,
  step,
  sync,
  where,
)

EDIT_OUTER = optax.sgd(0.7, momentum=0.8, nesterov=True)


def edit(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  outer: optax.GradientTransformation | None = None,
  threshold: float = 3.0,
  norm_rate: float = 0.02,
  warmup_rounds: int = 100,
  clip_norm: float = float('inf'),
) -> ReplicaTransformation:
  """EDiT: DiLoCo that weighs the replicas by how far they went (order C).

  After H local steps from x0:  x0 <- x0 + outer(x0 - xbar);  x_i <- x0, where
  xbar is the average of `average_penalized`, tensor by tensor.

  Args:
    local: optimizer of every replica, or a chain that is the local step. Its
      buffers are kept. A replica whose buffers are not finite stays without
      weight; restart the buffers in `local` or in an `average` of `diloco`.
    period: H, steps of a round, or the schedule of its ends.
    outer: optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.8.
    threshold: z-score above which a replica has no weight. Default 3.
    norm_rate: of the running mean and variance of norms, in (0, 1]. Default
      0.02.
    warmup_rounds: rounds before z-scores count. Default 100.
    clip_norm: norm to which the average of a tensor is clipped. Default: none.

  Raises:
    ValueError: if an argument is out of range.

  Reference:
    Cheng et al. 2024, EDiT: a local-SGD-based efficient distributed training
    method for large language models (arXiv 2412.07210); see
    `average_penalized`. Its synchronous form without sharding. Default numbers
    are those of its code in atorch; the text of the paper was not compared.
  """
  return outer_rounds(
    'edit',
    local,
    EDIT_OUTER if outer is None else outer,
    period=period,
    average=average_penalized(
      threshold=threshold,
      norm_rate=norm_rate,
      warmup_rounds=warmup_rounds,
      clip_norm=clip_norm,
    ),
  )


def average_penalized(
  *,
  threshold: float = 3.0,
  norm_rate: float = 0.02,
  warmup_rounds: int = 100,
  clip_norm: float = float('inf'),
) -> ReplicaTransformation:
  """EDiT's average for rounds from a register x0, tensor by tensor.

  d_i = x0 - x_i, n_i = |d_i|. Replicas whose n_i is not finite, or has a
  z-score above the threshold, have weight 0; the others w = softmax(-n_i).
  d = sum_i w_i d_i;  x_i <- x0 - d min(1, clip / |d|), and x0 if no replica has
  weight. The z-score is by the running mean and variance that each replica has
  of its own n_i:  s = n - mean;  mean <- mean + rate s;
  var <- (1 - rate) (var + rate s (n - mean)).

  With no replica left out, equal norms and no clip, it is the mean.

  Args:
    threshold: z-score above which a replica has no weight. Default 3.
    norm_rate: of the running mean and variance, in (0, 1]. Default 0.02.
    warmup_rounds: rounds before z-scores count, >= 0. Default 100.
    clip_norm: norm to which d is clipped, > 0. Default: none.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> algorithm = pr.diloco(tx, period=8, average=pr.chain(
    ...     pr.algorithms.average_penalized(warmup_rounds=10), pr.restart(tx)))

  Reference:
    Cheng et al. 2024 (arXiv 2412.07210), pseudo-gradient penalty, as in atorch
    (`local_sgd`), with three differences: norms are of a tensor, not of a
    sharded module; the threshold does not widen with recent z-scores; norms
    that are not finite are left out.
  """
  threshold = check_number(
    'threshold', threshold, lambda x: x > 0, '> 0', infinite=True
  )
  rate = check_number('norm_rate', norm_rate, lambda x: 0 < x <= 1, 'in (0, 1]')
  warmup = min(check_step('warmup_rounds', warmup_rounds), MAX_STEPS)
  clip = check_number(
    'clip_norm', clip_norm, lambda x: x > 0, '> 0', infinite=True
  )

  def judged(n: Array, average: Array, var: Array, rounds: Array) -> Array:
    known = (rounds >= warmup) & (var > 0)
    score = jnp.where(
      known, (n - average) / jnp.sqrt(jnp.where(known, var, 1)), 0
    )
    return jnp.where(jnp.isfinite(n) & (score <= threshold), n, jnp.inf)

  def in_my_place(size: Array, replica: Array, num_replicas: int) -> Array:
    mine = jnp.arange(num_replicas) == replica
    return jnp.where(mine, num_replicas * size, 0)

  def weighted(d: Array, size: Array, sizes: Array, num_replicas: int) -> Array:
    least = jnp.where(jnp.isfinite(sizes.min()), sizes.min(), 0)
    share = jnp.exp(least - size) / jnp.maximum(jnp.exp(least - sizes).sum(), 1)
    return jnp.where(jnp.isfinite(size), num_replicas * share * d, 0)

  return algorithm(
    'average_penalized',
    remember(average=_number, var=_number, rounds=0.0),
    let(
      d=lambda x0, params: x0 - params,
      n=_norm,
      size=judged,
      sizes=in_my_place,
      shift=lambda n, average: jnp.where(jnp.isfinite(n), n - average, 0),
      average=lambda average, shift: average + rate * shift,
      var=lambda var, shift, n: jnp.where(
        jnp.isfinite(n), (1 - rate) * (var + rate * (1 - rate) * shift**2), var
      ),
      rounds=lambda rounds: rounds + 1,
    ),
    sync(mean(), 'sizes'),
    let(d=weighted),
    sync(mean(), 'd'),
    let(
      n=_norm,
      params=lambda x0, d, n: x0 - d * jnp.minimum(1, clip / (n + 1e-6)),
    ),
  )


def average_radial() -> ReplicaTransformation:
  """The radial-directional average for rounds from a register x0.

  d_i = x0 - x_i, tensor by tensor, with the register `weight` of the replicas
  if there is one:  r = sum_i w_i |d_i| / sum_i w_i;  u = sum_i w_i d_i / |d_i|;
  x_i <- x0 - r u / |u|. Where differences point in many directions the mean is
  short; here its length is that of the differences.

  Reference:
    Decoupled DiLoCo team 2026, Decoupled DiLoCo for resilient distributed
    pre-training (arXiv 2604.21428). The equation is from a catalogue and was
    not verified in the paper. A zero difference has no direction and counts in
    r only.
  """
  return algorithm(
    'average_radial',
    let(
      u=lambda x0, params: x0 - params,
      r=lambda u: jnp.linalg.norm(u.ravel()),
    ),
    let(u=_direction),
    sync(mean(), ('r', 'u')),
    let(u=_direction, params=lambda x0, r, u: x0 - r * u),
  )


def decoupled_diloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  local_steps: Sequence[int],
  quorum: int | None = None,
  outer: optax.GradientTransformation | None = None,
) -> ReplicaTransformation:
  """Decoupled DiLoCo: the replicas that are there, weighted by work (order C).

  In a round, replica i takes I_i steps from x0; then M of the N, drawn by
  chance, are there. x0 <- x0 + outer(x0 - xbar);  x_i <- x0, where xbar is the
  average of `average_radial` over these with weights tokens^2 / steps, which
  are proportional to I_i for equal batches.

  Args:
    local: optimizer of every replica, or a chain that is the local step.
    local_steps: I_i, one for each replica; a round is max_i I_i steps.
    quorum: M, replicas that are there at the end of a round. Default: all.
    outer: optax transformation of the pseudo-gradient. Default: that of
      `diloco`.

  Raises:
    ValueError: if an argument is out of range; from `init`, if there is not one
      number of steps for each replica.

  Reference:
    Decoupled DiLoCo team 2026, Decoupled DiLoCo for resilient distributed
    pre-training (arXiv 2604.21428). The weights are from a catalogue and were
    not verified. Here learners share the rounds: the paper's learners have
    clocks of their own, send fragments, and have a time of grace to arrive. An
    absent replica loses its round and continues from x0.
  """
  counts = check_positive_ints('local_steps', local_steps)
  here = len(counts) if quorum is None else check_positive_int('quorum', quorum)
  if here > len(counts):
    raise ValueError(
      f'quorum must be at most the {len(counts)} replicas, got {here}'
    )

  def present(shared_key: Array, replica: Array, num_replicas: int) -> Array:
    rank = jax.random.permutation(shared_key, num_replicas)
    return (rank < here)[replica] * 1.0

  outer = DILOCO_OUTER if outer is None else outer
  return algorithm(
    'decoupled_diloco',
    remember(x0='params', weight=1.0),
    where(first_steps(counts), step(local)),
    at(
      every(max(counts)),
      let(
        work=per_replica(counts),
        weight=present,
      ),
      let(weight=lambda weight, work: weight * work),
      average_radial(),
      let(delta=lambda x0, params: x0 - params),
      outer_update(outer, of='delta', at='x0'),
      let(params='x0'),
    ),
  )


def _number(params: Array) -> Array:
  """A zero for each tensor."""
  return jnp.zeros((), params.dtype)


def _norm(d: Array) -> Array:
  return jnp.linalg.norm(d.ravel())


def _direction(u: Array) -> Array:
  size = jnp.linalg.norm(u.ravel())
  return jnp.where(size > 0, u / jnp.where(size > 0, size, 1), 0)
