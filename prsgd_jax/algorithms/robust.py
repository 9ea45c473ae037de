"""DiLoCo with robust averages, which tolerate bad or missing replicas."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from prsgd_jax.algorithms.diloco import DILOCO_OUTER, outer_rounds
from prsgd_jax.base import Array, ReplicaTransformation, Schedule, chain
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
  kept,
  let,
  on_resize,
  outer_update,
  per_replica,
  remember,
  require_everyone,
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
  """EDiT: DiLoCo that weights replicas by the norm of their movement (order C).

  After H local steps from x0:  x0 <- x0 + outer(x0 - xbar);  x_i <- x0, where
  xbar is the average of `average_penalized`, tensor by tensor.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
      Its buffers are kept. A replica with non-finite buffers never regains
      weight; restart the buffers in `local` or in an `average` of `diloco`.
    period: H, steps in a round, or the schedule of the ends of rounds.
    outer: an optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.8.
    threshold: z-score above which a replica has weight 0, > 0. Default: 3.
    norm_rate: rate of the running mean and variance of norms, in (0, 1].
      Default: 0.02.
    warmup_rounds: rounds before z-scores are used, >= 0. Default: 100.
    clip_norm: norm to which the average of a tensor is clipped, > 0. Default:
      none.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax
    >>> algorithm = edit(optax.adamw(1e-3), period=50, clip_norm=10.0)

  Reference:
    Cheng et al. 2024, EDiT: a local-SGD-based efficient distributed training
    method for large language models (arXiv 2412.07210), in its synchronous form
    without sharding; see `average_penalized`. Defaults follow its code in
    atorch. Not verified: the text of the paper.
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
  """Return EDiT's average for rounds from a register x0, tensor by tensor.

  d_i = x0 - x_i, n_i = |d_i|. A replica whose n_i is not finite, or whose
  z-score exceeds the threshold, has weight 0. All other replicas have weights
  w = softmax(-n_i). d = sum_i w_i d_i;  x_i <- x0 - d min(1, clip / |d|), and
  x0 if no replica has weight. The z-score uses the running mean and variance
  that each replica keeps of its own n_i:  s = n - mean;
  mean <- mean + rate s;  var <- (1 - rate) (var + rate s (n - mean)).

  With equal finite norms and no clip, it is the mean.

  Args:
    threshold: z-score above which a replica has weight 0, > 0. Default: 3.
    norm_rate: rate of the running mean and variance, in (0, 1]. Default: 0.02.
    warmup_rounds: rounds before z-scores are used, >= 0. Default: 100.
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
    (`local_sgd`), with three differences: a norm is taken over a tensor, not
    over a sharded module; the threshold does not widen with recent z-scores;
    norms that are not finite are excluded.
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
    chain(
      remember(average=_number, var=_number, rounds=0.0),
      on_resize(average=kept(), var=kept()),
    ),
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
    require_everyone('average_penalized adds up the norms of all N replicas'),
  )


def average_radial() -> ReplicaTransformation:
  """Return the radial-directional average for rounds from a register x0.

  Tensor by tensor, d_i = x0 - x_i. With the register `weight`, if it exists:
  r = sum_i w_i |d_i| / sum_i w_i;  u = sum_i w_i d_i / |d_i|;
  x_i <- x0 - r u / |u|. If differences point in many directions, their mean is
  short. This average has the mean length of the differences instead.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diloco(
    ...     optax.adamw(1e-3), period=50, average=average_radial())

  Reference:
    Decoupled DiLoCo team 2026, Decoupled DiLoCo for resilient distributed
    pre-training (arXiv 2604.21428). The equation comes from a catalog and was
    not verified in the paper. A zero difference has no direction and counts
    only in r.
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
  """Decoupled DiLoCo: average of the present replicas by work (order C).

  In a round, replica i takes I_i steps from x0. Then M random replicas of the N
  are present. x0 <- x0 + outer(x0 - xbar);  x_i <- x0, where xbar is the
  `average_radial` of the present replicas with weights tokens^2 / steps, which
  are proportional to I_i for equal batches.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    local_steps: I_i, one integer >= 1 for each replica. A round takes max_i I_i
      steps.
    quorum: M, replicas present at the end of a round, in 1 .. N. Default: N.
    outer: an optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.9.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the number of
      entries is not N.

  Example:
    >>> import optax
    >>> algorithm = decoupled_diloco(
    ...     optax.adamw(1e-3), local_steps=[50, 50, 40, 40], quorum=3)

  Reference:
    Decoupled DiLoCo team 2026, Decoupled DiLoCo for resilient distributed
    pre-training (arXiv 2604.21428). The weights come from a catalog and were
    not verified. Here all learners share the rounds; the paper's learners have
    separate clocks, send fragments, and have a grace period to arrive. An
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
  """Return a zero for each tensor."""
  return jnp.zeros((), params.dtype)


def _norm(d: Array) -> Array:
  return jnp.linalg.norm(d.ravel())


def _direction(u: Array) -> Array:
  size = jnp.linalg.norm(u.ravel())
  return jnp.where(size > 0, u / jnp.where(size > 0, size, 1), 0)
