"""Elastic averages: replicas are pulled to a center or to their start."""

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
  kept,
  let,
  local_update,
  on_resize,
  outer_update,
  remember,
  require,
  sync,
  where,
  zeros,
)


def elastic(alpha: float) -> ReplicaTransformation:
  """Return the elastic force between the replicas and a register `center`.

    x_i <- x_i - alpha (x_i - c);  c <- c + alpha sum_i (x_i - c)

  Both use the old x_i and c. c is equal on all replicas, and only the mean of
  the x_i is sent. N alpha <= 1 is required, because c becomes
  (1 - N alpha) c + N alpha xbar. The papers' beta is N alpha.

  Args:
    alpha: the moving rate, in (0, 1].

  Raises:
    ValueError: if `alpha` is out of range; from `init`, if N alpha > 1.

  Example:
    >>> import prsgd_jax as pr
    >>> pull = pr.chain(pr.remember(center='params'), elastic(0.1))
  """
  alpha = check_number('alpha', alpha, lambda x: 0 < x <= 1, 'in (0, 1]')

  def check(replica: Replica, num_replicas: int) -> None:
    del replica
    # With a margin, because N times 1 / N may exceed 1 by a rounding error.
    if num_replicas * alpha > 1 + 1e-9:
      raise ValueError(
        f'alpha must be at most 1 / N = {1 / num_replicas:g} with '
        f'{num_replicas} replicas, got {alpha}; a usual value is 0.9 / N'
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
  """Elastic averaging SGD: replicas are pulled to a center (order A).

  If t mod tau = 0:  x_i <- x_i - alpha (x_i - c) - gamma G(x_i) and
  c <- c + alpha sum_i (x_i - c), all with the old x_i and c; else a local step.

  The output is the center c, with the replicas' own batch statistics. The
  replicas are never equal.

  Args:
    tx: an optimizer for every replica. With `optax.sgd(nesterov=True)` the
      force acts on the point of the gradient, which differs from `eamsgd`.
    period: tau, steps between pulls, or the schedule of the pulls. The first
      pull comes with the tau-th gradient. The paper has a pull at time 0, which
      does nothing, and the next with the (tau + 1)-th gradient.
    alpha: the moving rate, in (0, 1 / N]. The paper uses beta = N alpha = 0.9.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or if alpha is
      not in (0, 1]; from `init`, if N alpha > 1.

  Example:
    >>> import optax
    >>> algorithm = easgd(optax.sgd(0.1), period=8, alpha=0.9 / 8)  # N = 8

  Reference:
    Zhang, Choromanska, LeCun 2015, Deep learning with elastic averaging SGD
    (arXiv 1412.6651), equations of synchronous EASGD (numbers not verified).
    With period > 1 it is Algorithm 1 with all workers on one clock.
  """
  return algorithm(
    'easgd',
    chain(remember(center='params'), on_resize(params=kept('center'))),
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
  """Elastic averaging SGD with Nesterov momentum (order A).

  v_i <- delta v_i - gamma G(x_i + delta v_i);  x_i <- x_i + v_i, and if
  t mod tau = 0 also x_i <- x_i - alpha (x_i - c) and
  c <- c + alpha sum_i (x_i - c), with the force at the old x_i and c.

  The output is the center c. In the variable y_i = x_i + delta v_i, the
  momentum is `optax.sgd(nesterov=True)`. But the force acts on x_i and not on
  y_i, so `easgd` with that optimizer is a different sequence.

  Args:
    tx: an optimizer without momentum for every replica, `optax.sgd(gamma)`.
    period: tau, steps between pulls, or the schedule of the pulls.
    alpha: the moving rate, in (0, 1 / N].
    momentum: delta, in [0, 1).

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or if alpha or
      delta is out of range; from `init`, if N alpha > 1, or if `tx` has
      momentum.

  Example:
    >>> import optax
    >>> algorithm = eamsgd(
    ...     optax.sgd(0.1), period=8, alpha=0.9 / 8, momentum=0.9)  # N = 8

  Reference:
    Zhang, Choromanska, LeCun 2015, Deep learning with elastic averaging SGD
    (arXiv 1412.6651), Algorithm 2, with all workers on one clock.
  """
  delta = check_number('momentum', momentum, lambda x: 0 <= x < 1, 'in [0, 1)')
  return algorithm(
    'eamsgd',
    chain(
      remember(center='params', v=zeros),
      on_resize(params=kept('center'), v=kept(zeros)),
    ),
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
      'eamsgd adds the momentum itself and expects an optimizer without, such '
      'as optax.sgd(0.1), got one with momentum'
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
  """Pseudo-asynchronous local SGD: DiLoCo with random pulls to x0.

  At each step, independently on each replica: with probability p
  x_i <- x_i - gamma (k / p) (x_i - x0) without a gradient, otherwise
  x_i <- x_i - gamma / (1 - p) G_i. After H steps, as in `diloco`,
  x0 <- x0 + outer(x0 - mean_j x_j);  x_i <- x0 (order C).

  The expected step is -gamma (G_i + k (x_i - x0)), as in `fedprox` with mu = k.
  With p = 0 it is `diloco`. A pull takes no gradient, so some replicas are idle
  in a step, which the ledger counts.

  Args:
    tx: an optimizer for every replica, AdamW in the paper. A pull does not
      change its buffers.
    period: H, steps in a round, or the schedule of the ends of rounds.
    learning_rate: gamma, the learning rate of `tx`: a number > 0 or a schedule
      of the step.
    probability: p, the probability of a pull in a step, in [0, 1).
    pull: k, the strength of a pull, >= 0.
    outer: an optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.9.
    average: the stage at the end of a round. Default: the mean of the
      parameters.
    draw_seed: seed of the draws, an integer in 0 .. 2^32 - 1, independent of
      the seed of the run, so that the ledger knows the draws in advance.
      Default: 0.

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
    resnet_cifar10/algorithm/postadaptive_localsgd_decoupled.py). The code
    begins with synchronous steps and draws the pulls of a step at the end of
    the previous one. Not verified: the number of the paper's algorithm, and the
    code's default for k.
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
