"""Federated averages: replicas are clients, sampled at random and weighted."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prsgd_jax.algorithms.common import AVERAGE
from prsgd_jax.base import (
  Array,
  ReplicaTransformation,
  Schedule,
  Step,
  chain,
)
from prsgd_jax.checks import check_listed, check_number, check_seed
from prsgd_jax.schedules import every, latest, rounds, starts
from prsgd_jax.stages import (
  algorithm,
  at,
  first_steps,
  gradient,
  let,
  local_update,
  on_resize,
  outer_update,
  per_replica,
  remember,
  restart,
  step,
  where,
)
from prsgd_jax.stages.rules import Rule


def fedavg(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  participation: float = 1.0,
  weights: Sequence[float] | None = None,
  server: optax.GradientTransformation | None = None,
  average: ReplicaTransformation | None = None,
  draw_seed: int = 0,
) -> ReplicaTransformation:
  """Federated averaging with partial participation (order C).

  In a round, a uniform random set S of max(round(C N), 1) replicas takes K
  steps from x; then x <- sum_{i in S} n_i x_i / sum_{i in S} n_i on all
  replicas. Replicas outside S compute nothing. With `server` it is FedOpt:
  x <- server(x - mean).

  With C = 1 and equal n_i it is `k_avg` with its buffers reset, K = E n_i / B.
  A replica sends its weight in the average, n_i or 0, along with its model.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    period: K, steps in a round, an integer >= 1; or a schedule.
    participation: C, the fraction of replicas in a round, in (0, 1]. Default:
      1.
    weights: n_i, one number > 0 for each replica, such as its number of
      examples. Default: all equal.
    server: an optax transformation of the pseudo-gradient x - mean. Its
      schedules count rounds. `optax.adam` corrects the bias of Adam's moments,
      unlike the paper's FedAdam. Default: none.
    average: the stage at the end of a round. Default: the weighted mean; then
      the buffers of an optimizer `local` are reset, because the paper's clients
      keep nothing between rounds. With `average_differences(codec)` clients
      send codes; a codec with memory also sends the memory of replicas that
      were not drawn.
    draw_seed: seed of the draws, an integer in 0 .. 2^32 - 1, independent of
      the seed of the run, so that the ledger knows the draws in advance.
      Default: 0.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the number of
      weights is not N.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = fedavg(optax.sgd(0.1), period=8, participation=0.5)
    >>> coded = fedavg(
    ...     optax.sgd(0.1), period=8, participation=0.5,
    ...     average=pr.stages.average_differences(
    ...         pr.codecs.stochastic_levels(4)))

  Reference:
    McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017,
    Communication-efficient learning of deep networks from decentralized data
    (arXiv 1602.05629), Algorithm 1; Reddi et al. 2021, Adaptive federated
    optimization (arXiv 2003.00295), Algorithms 1 and 2. Here all replicas of a
    round take equally many steps, and the mean is an all-reduce over all
    replicas.
  """
  is_optimizer = isinstance(local, optax.GradientTransformation)
  return _federated(
    'fedavg',
    step(local),
    restart(local) if is_optimizer else chain(),
    period=period,
    participation=participation,
    weights=weights,
    server=server,
    average=average,
    draw_seed=draw_seed,
  )


def fedprox(
  tx: optax.GradientTransformation,
  *,
  period: int | Schedule,
  mu: float,
  participation: float = 1.0,
  weights: Sequence[float] | None = None,
  server: optax.GradientTransformation | None = None,
  average: ReplicaTransformation | None = None,
  draw_seed: int = 0,
) -> ReplicaTransformation:
  """Federated averaging with a proximal term near x (order C).

  It is `fedavg` in which client i minimizes f_i(y) + mu |y - x|^2 / 2, where x
  is the common point at the start of the round. The gradient of the client is
  G_i + mu (x_i - x).

  mu = 0 is `fedavg`. The first step of a round equals a step of `fedavg`,
  because it starts at x.

  Args:
    tx: the optimizer of every replica, plain SGD in the authors' code.
    period: K, steps in a round, an integer >= 1; or a schedule.
    mu: strength of the proximal term, >= 0.
    participation: C, the fraction of replicas in a round, in (0, 1]. Default:
      1.
    weights: n_i, one number > 0 for each replica. Default: all equal.
    server: an optax transformation of the pseudo-gradient x - mean. Default:
      none.
    average: the stage at the end of a round. Default: the weighted mean, after
      which the buffers of `tx` are reset.
    draw_seed: seed of the draws, an integer in 0 .. 2^32 - 1. Default: 0.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the number of
      weights is not N.

  Example:
    >>> import optax
    >>> algorithm = fedprox(optax.sgd(0.1), period=8, mu=0.1)

  Reference:
    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, Federated optimization in
    heterogeneous networks (arXiv 1812.06127); the local step follows the
    authors' code, litian96/FedProx, flearn/optimizer/pgd.py. Not verified: the
    number of the paper's algorithm. The paper draws clients with probability
    n_i and takes their plain mean, which equals `weights=None` for equal n_i.
    It also allows unequal local steps; see `fednova`.
  """
  mu = check_number('mu', mu, lambda x: 0 <= x < np.inf, '>= 0 and finite')
  proximal = chain(
    gradient(),
    let(grads=lambda grads, params, x0: grads + mu * (params - x0)),
    local_update(tx),
  )
  return _federated(
    'fedprox',
    proximal,
    restart(tx),
    period=period,
    participation=participation,
    weights=weights,
    server=server,
    average=average,
    draw_seed=draw_seed,
  )


def fednova(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  local_steps: Sequence[int],
  normalizers: Sequence[float] | None = None,
  average: ReplicaTransformation = AVERAGE,
) -> ReplicaTransformation:
  """Normalized averaging: unequal work without its bias (order C).

  From the common x, replica i takes I_i steps, d_i = x - x_i; then

    x <- x - (mean_j a_j) mean_i (d_i / a_i),  a_i = I_i.

  A round takes max_i I_i steps; a finished replica waits. With equal I_i it is
  `k_avg`. With unequal I_i the mean of `pr_sgd_heterogeneous` is biased towards
  replicas that take more steps. Here it is not, to first order in the learning
  rate.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    local_steps: I_i, one integer >= 1 for each replica.
    normalizers: a_i > 0, the movement of replica i in units of one plain SGD
      step. Default: I_i. With momentum m whose buffers are reset at each
      average, use sum_{k=1}^{I_i} (1 - m^k) / (1 - m).
    average: the stage at the end of a round, applied to x - (mean_j a_j) d_i
      / a_i. Default: the mean of the parameters.

  Raises:
    ValueError: if a number of steps is not an integer >= 1, or a normalizer is
      not a finite number > 0; from `init`, if the number of entries is not N.

  Example:
    >>> import optax
    >>> algorithm = fednova(optax.sgd(0.1), local_steps=[4, 4, 8, 16])

  Reference:
    Wang, Liu, Liang, Joshi, Poor 2020, Tackling the objective inconsistency
    problem in heterogeneous federated optimization (arXiv 2007.07481), with
    equal p_i and the authors' tau_eff = sum_i p_i a_i (JYWa/FedNova,
    distoptim/FedNova.py, which restarts the buffers at each average, as
    `average=chain(sync(mean()), restart(tx))` does here). Not verified: the
    numbers of its equations.
  """
  active = first_steps(local_steps)
  a = _positive(
    'normalizers', local_steps if normalizers is None else normalizers
  )
  return algorithm(
    'fednova',
    remember(x0='params'),
    where(active, step(local)),
    at(
      every(max(local_steps)),
      let(
        scale=per_replica(a.mean() / a),
        params=lambda params, x0, scale: x0 + scale * (params - x0),
      ),
      average,
      let(x0='params'),
    ),
  )


def _federated(
  name: str,
  local: ReplicaTransformation,
  restarts: ReplicaTransformation,
  *,
  period: int | Schedule,
  participation: float,
  weights: Sequence[float] | None,
  server: optax.GradientTransformation | None,
  average: ReplicaTransformation | None,
  draw_seed: int,
) -> ReplicaTransformation:
  """Return rounds of sampled and weighted clients; see `fedavg`.

  Args:
    name: the name of the algorithm.
    local: the local step. It may read x0, the point at the start of the round.
    restarts: the stage after the mean, unless `average` is given.
  """
  ends = rounds(period)
  fraction = check_number(
    'participation', participation, lambda x: 0 < x <= 1, 'in (0, 1]'
  )
  seed = check_seed('draw_seed', draw_seed)
  end = chain(AVERAGE if average is None else average)
  x0_is_read = server is not None or any(
    'x0' in stage.names.reads for stage in (local, end)
  )
  size = 1.0 if weights is None else _sizes(weights)
  weigh: list[ReplicaTransformation] = []

  def again(share: Callable[..., Array]) -> Callable[..., Array]:
    """Return the rule that draws the clients of the round again."""

    def weight(step: Step, replica: Array, num_replicas: int) -> Array:
      first = latest(starts(ends))(np.reshape(step, 1))[0]
      n = size.fn(replica) if isinstance(size, Rule) else size
      return share(n, first, replica, num_replicas)

    return weight

  if fraction < 1:
    share, drawn = _draws(fraction, seed, starts(ends))
    weight = chain(remember(weight=1.0), on_resize(weight=again(share)))
    weigh = [weight, at(starts(ends), let(n=size, weight=share))]
    local = where(lambda weight: weight > 0, local, expected=drawn)
  elif weights is not None:
    weight = chain(remember(weight=1.0), on_resize(weight=size))
    weigh = [weight, at(starts(ends), let(weight=size))]
  return algorithm(
    name,
    *([remember(x0='params')] if x0_is_read else []),
    *weigh,
    local,
    at(
      ends,
      end,
      *([] if server is None else _serve(server)),
      *([let(x0='params')] if x0_is_read and server is None else []),
      *([restarts] if average is None else []),
    ),
  )


def _serve(server: optax.GradientTransformation) -> list[ReplicaTransformation]:
  """Return the stages x0 <- server(x0 - x); x <- x0."""
  return [
    let(delta=lambda x0, params: x0 - params),
    outer_update(server, of='delta', at='x0'),
    let(params='x0'),
  ]


def _draws(
  fraction: float, seed: int, begins: Schedule
) -> tuple[Callable[..., Array], Callable[[np.ndarray, int], np.ndarray]]:
  """Return the clients of a round, for the replicas and for the ledger.

  Both evaluate one function of the seed and of the first step of the round,
  because the ledger does not know the random keys of the run.
  """
  first_of = latest(begins)

  def drawn(first: Array, num_replicas: int) -> Array:
    key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), first)
    rank = jax.random.permutation(key, num_replicas)
    return rank < max(round(fraction * num_replicas), 1)

  def share(n: Array, step: Array, replica: Array, num_replicas: int) -> Array:
    return jnp.where(drawn(step, num_replicas)[replica], n, 0)

  def expected(steps: np.ndarray, num_replicas: int) -> np.ndarray:
    of_round, at_step = np.unique(first_of(steps), return_inverse=True)
    worked = jax.vmap(lambda step: drawn(step, num_replicas))(of_round)
    return np.asarray(worked)[at_step]

  return share, expected


def _sizes(weights: Sequence[float]) -> Rule:
  sizes = _positive('weights', weights)

  def check(num_replicas: int) -> None:
    if len(sizes) != num_replicas:
      raise ValueError(
        f'weights must have one number for each of the {num_replicas} '
        f'replicas, got {len(sizes)}'
      )

  return per_replica(sizes)._replace(check=check)


def _positive(name: str, values: Sequence[float]) -> np.ndarray:
  return np.array(
    [
      check_number(name, x, lambda x: x > 0, 'numbers > 0')
      for x in check_listed(name, values)
    ]
  )
