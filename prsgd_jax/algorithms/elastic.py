"""Elastic averages: replicas that are tied to a center or to their start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.algorithms.common import AVERAGE
from prsgd_jax.algorithms.diloco import DILOCO_OUTER
from prsgd_jax.algorithms.rates import as_rate
from prsgd_jax.base import (
  Array,
  Replica,
  ReplicaTransformation,
  Schedule,
  Step,
  chain,
)
from prsgd_jax.checks import check_number, check_optax, check_seed
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  evaluate,
  gradient,
  let,
  local_update,
  outer_update,
  remember,
  require,
  sync,
  where,
  zeros,
)


def elastic(alpha: float) -> ReplicaTransformation:
  """The elastic force between the replicas and a register `center`.

  x_i <- x_i - alpha (x_i - c);  c <- c + alpha sum_i (x_i - c), both of the old
  x_i and c. Every replica keeps the same c, and only the mean of the x_i is
  sent. N alpha <= 1, since c becomes (1 - N alpha) c + N alpha xbar: the
  papers' beta = N alpha.

  Args:
    alpha: the moving rate, in (0, 1].

  Raises:
    ValueError: if `alpha` is out of range; from `init`, if N alpha is more
      than 1.
  """
  alpha = check_number('alpha', alpha, lambda x: 0 < x <= 1, 'in (0, 1]')

  def check(replica: Replica, num_replicas: int) -> None:
    del replica
    # N times 1 / N may be a rounding error more than 1.
    if num_replicas * alpha > 1 + 1e-9:
      raise ValueError(
        f'alpha must be at most 1 / N = {1 / num_replicas:g} with '
        f'{num_replicas} replicas, got {alpha}; 0.9 / N is usual'
      )

  return chain(
    require(check),
    let(xbar='params'),
    sync(mean(), 'xbar'),
    let(
      params=lambda params, center: params + alpha * (center - params),
      center=lambda center, xbar, num_replicas: (
        center + alpha * num_replicas * (xbar - center)
      ),
    ),
  )


def easgd(
  tx: optax.GradientTransformation, *, period: int | Schedule, alpha: float
) -> ReplicaTransformation:
  """Elastic averaging SGD: replicas tied to a center (order A).

  If t mod tau = 0:  x_i <- x_i - alpha (x_i - c) - gamma G(x_i) and
  c <- c + alpha sum_i (x_i - c), all of the old x_i and c; else a local step.

  The output is the center c, with the replicas' own batch statistics. The
  replicas never agree.

  Args:
    tx: optimizer of every replica. With `optax.sgd(nesterov=True)` the force is
      that on the point at which the gradient is taken: another sequence than
      `eamsgd`.
    period: tau, steps between pulls, or the schedule of the pulls. The first
      comes with the tau-th gradient; by the paper's clock, which has one at 0
      that does nothing, the next comes with the (tau + 1)-th.
    alpha: the moving rate, in (0, 1 / N]; the paper's beta = N alpha is 0.9.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or alpha not
      in (0, 1]; from `init`, if N alpha is more than 1.

  Reference:
    Zhang, Choromanska, LeCun 2015, Deep learning with elastic averaging SGD
    (arXiv 1412.6651), equations of synchronous EASGD (numbers not verified).
    With period > 1 it is Algorithm 1 with all workers on one clock.
  """
  return algorithm(
    'easgd',
    remember(center='params'),
    gradient(),
    at(rounds(period), elastic(alpha)),
    local_update(tx),
    evaluate(params='center'),
  )


def eamsgd(
  tx: optax.GradientTransformation,
  *,
  period: int | Schedule,
  alpha: float,
  momentum: float,
) -> ReplicaTransformation:
  """Elastic averaging SGD with Nesterov momentum inside (order A).

  v_i <- delta v_i - gamma G(x_i + delta v_i);  x_i <- x_i + v_i, and if
  t mod tau = 0 also x_i <- x_i - alpha (x_i - c) and
  c <- c + alpha sum_i (x_i - c), the force that of the old x_i and c.

  The output is the center c. In y_i = x_i + delta v_i the momentum alone is
  `optax.sgd(nesterov=True)`, but the force is that on x_i, not on y_i: `easgd`
  with such an optimizer is another sequence.

  Args:
    tx: optimizer without momentum, `optax.sgd(gamma)`.
    period: tau, steps between pulls, or the schedule of the pulls.
    alpha: the moving rate, in (0, 1 / N].
    momentum: delta, in [0, 1).

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, alpha not in
      (0, 1] or delta not in [0, 1); from `init`, if N alpha is more than 1 or
      `tx` has momentum of its own.

  Reference:
    Zhang, Choromanska, LeCun 2015, Deep learning with elastic averaging SGD
    (arXiv 1412.6651), Algorithm 2, with all workers on one clock.
  """
  delta = check_number('momentum', momentum, lambda x: 0 <= x < 1, 'in [0, 1)')
  return algorithm(
    'eamsgd',
    remember(center='params', v=zeros),
    let(ahead=lambda params, v: params + delta * v),
    gradient('ahead'),
    at(rounds(period), elastic(alpha)),
    local_update(tx, into='u'),
    require(_has_no_momentum),
    let(v=lambda v, u: delta * v + u, params=lambda params, v: params + v),
    evaluate(params='center'),
  )


def _has_no_momentum(replica: Replica, num_replicas: int) -> None:
  del num_replicas
  nodes = jax.tree.leaves(replica.opt_state, is_leaf=_is_trace)
  if any(map(_is_trace, nodes)):
    raise ValueError(
      'eamsgd has the momentum; give an optimizer without, such as '
      'optax.sgd(0.1), got one with a velocity of its own'
    )


def _is_trace(node: Any) -> bool:
  return isinstance(node, optax.TraceState)


def palsgd(
  tx: optax.GradientTransformation,
  *,
  period: int | Schedule,
  learning_rate: optax.ScalarOrSchedule,
  probability: float,
  pull: float,
  outer: optax.GradientTransformation | None = None,
  average: ReplicaTransformation = AVERAGE,
  draw_seed: int = 0,
) -> ReplicaTransformation:
  """Pseudo-asynchronous local SGD: DiLoCo, with pulls to x0 now and then.

  At each step replica i, by itself, tosses a coin: with probability p
  x_i <- x_i - gamma (k / p) (x_i - x0) without a gradient, otherwise
  x_i <- x_i - gamma / (1 - p) G_i. After H steps, as in `diloco`,
  x0 <- x0 + outer(x0 - mean_j x_j);  x_i <- x0 (order C).

  The mean step is that of `fedprox` with mu = k: -gamma (G_i + k (x_i - x0)).
  With p = 0 it is `diloco`. A pull costs no gradient, so that replicas rest
  while the others work, which the ledger counts.

  Args:
    tx: optimizer of every replica, AdamW in the paper. A pull leaves its
      buffers alone.
    period: H, steps of a round, or the schedule of its ends.
    learning_rate: gamma, the learning rate of `tx`: a number > 0 or the same
      schedule of the step.
    probability: p, of a pull, in [0, 1).
    pull: k, strength of the pull, >= 0.
    outer: optax transformation of the pseudo-gradient. Default: that of
      `diloco`.
    average: stage at the end of a round. Default: the mean of the parameters.
    draw_seed: seed of the coins, an integer in 0 .. 2^32 - 1. The seed of the
      run does not matter to them. The ledger knows in advance who works.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> import optax
    >>> algorithm = palsgd(
    ...     optax.adamw(1e-3), learning_rate=1e-3, period=64, probability=0.1,
    ...     pull=16.0)

  Reference:
    Naganuma et al. 2025, Pseudo-asynchronous local SGD (arXiv 2504.18454),
    after the authors' code (Hiroki11x/Pseudo-Asynchronous-LocalSGD,
    resnet_cifar10/algorithm/postadaptive_localsgd_decoupled.py). The number of
    the paper's algorithm was not verified. The code begins with synchronous
    steps and has the coin of a step tossed at the end of the one before; its
    default for k was not verified.
  """
  gamma = as_rate(learning_rate)
  p = check_number(
    'probability', probability, lambda x: 0 <= x < 1, 'in [0, 1)'
  )
  k = check_number('pull', pull, lambda x: 0 <= x < np.inf, '>= 0 and finite')
  strength = k / p if p else 0.0
  seed = check_seed('draw_seed', draw_seed)
  outer = DILOCO_OUTER if outer is None else outer
  check_optax('outer', outer)

  def pulled(step: Step, replica: Step) -> Array:
    key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), step)
    key = jax.random.fold_in(key, replica)
    return jax.random.uniform(key, dtype=jnp.float32) < p

  def working(steps: np.ndarray, num_replicas: int) -> np.ndarray:
    coins = jax.vmap(jax.vmap(pulled, (None, 0)), (0, None))
    return ~np.asarray(coins(steps.astype(np.int32), np.arange(num_replicas)))

  def moved(params: Array, x0: Array, pulled: Array, step: Array) -> Array:
    nearer = params - gamma(step) * strength * (params - x0)
    return jnp.where(pulled, nearer, params)

  return algorithm(
    'palsgd',
    remember(x0='params'),
    let(pulled=pulled),
    where(
      lambda pulled: ~pulled,
      gradient(),
      local_update(tx, into='u'),
      let(params=lambda params, u: params + u / (1 - p)),
      expected=working,
    ),
    let(params=moved),
    at(
      rounds(period),
      average,
      let(delta=lambda x0, params: x0 - params),
      outer_update(outer, of='delta', at='x0'),
      let(params='x0'),
    ),
  )
