"""DiLoCo and its relatives: an outer optimizer steps by rounds."""

import optax

from prsgd_jax.algorithms.common import AVERAGE
from prsgd_jax.base import ReplicaTransformation, Schedule
from prsgd_jax.checks import check_optax
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import algorithm, at, let, outer_update, remember, step

DILOCO_OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)


def diloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  outer: optax.GradientTransformation | None = None,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """DiLoCo: an outer optimizer steps by the mean of many local steps (order C).

  After H local steps from x0:  x0 <- x0 + outer(x0 - mean_j x_j);  x_i <- x0.

  On one replica it is SNOO, and with plain SGD outside Lookahead.

  Args:
    local: optimizer of every replica, AdamW in the paper, or a chain that is
      the local step: `k_avg(tx, ...)` with group means makes an outer optimizer
      of Hier-AVG, `sgp(...)` one of push-sum.
    period: H, steps of a round, 500 in the paper, or the schedule of its ends.
    outer: optax transformation of the pseudo-gradient. Default: Nesterov SGD
      with learning rate 0.7 and momentum 0.9, the rate outside the buffer: m <-
      mu m + d, x0 <- x0 - eta (mu m + d). Its schedules count rounds.
    average: stage at the end of a round. Default: the mean of the parameters.
      With gossip such as `sync(ring())`, every replica has an x0 of its own.
      `average_differences(...)` sends the differences in codes.

  Raises:
    ValueError: if `period` is not an integer >= 1 or a schedule, or an
      optimizer is none.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.diloco(optax.adamw(1e-3), period=500)

  Reference:
    Douillard et al. 2023, DiLoCo: distributed low-communication training of
    language models (arXiv 2311.08105), Algorithm 1.
  """
  outer = DILOCO_OUTER if outer is None else outer
  return outer_rounds('diloco', local, outer, period=period, average=average)


def outer_rounds(
  name: str,
  local: optax.GradientTransformation | ReplicaTransformation,
  outer: optax.GradientTransformation,
  *,
  period: int | Schedule,
  average: ReplicaTransformation,
) -> ReplicaTransformation:
  """x0 <- x0 + outer(x0 - average);  x_i <- x0: DiLoCo by any other name."""
  check_optax('outer', outer)
  return algorithm(
    name,
    remember(x0='params'),
    step(local),
    at(
      rounds(period),
      average,
      let(delta=lambda x0, params: x0 - params),
      outer_update(outer, of='delta', at='x0'),
      let(params='x0'),
    ),
  )
