"""Decentralized methods that reach the optimum of the mean on unlike data.

D-PSGD and diffusion stop where mixing and the replicas' own gradients balance,
which is not the optimum if the f_i differ. Here a correction c_i compensates
the difference. The c_i add up to 0, so that the mean of x moves by the mean
step. The exception is `qg_dsgdm`, which only smooths the movements.

u_i is the step of the replica's optimizer, -gamma G_i for SGD. With momentum
the corrections follow the momentum, and the optimum is still correct. With an
optimizer that is not linear in the gradient, the replicas agree on a point at
which the mean of their steps is zero.
"""

import optax

from prsgd_jax.algorithms.rates import as_rate, per_unit
from prsgd_jax.algorithms.requirements import (
  check_mixing,
  keeps_the_mean,
  requires,
  symmetric_above,
)
from prsgd_jax.base import ReplicaTransformation, Schedule
from prsgd_jax.checks import check_number
from prsgd_jax.mixing.graphs.fixed import ring
from prsgd_jax.mixing.mixings import Mixing
from prsgd_jax.schedules import rounds
from prsgd_jax.stages import (
  algorithm,
  at,
  gradient,
  let,
  local_update,
  remember,
  step,
  sync,
  zeros,
)


def gradient_tracking(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """Gradient tracking: u_i + c_i follows the mean step of all replicas.

    x_i <- sum_j W_ij (x_j + u_j + c_j)
    c_i <- sum_j W_ij (c_j + u_j) - u_i,  c_i = 0 initially

  With y_i = u_i + c_i these are y_i <- sum_j W_ij y_j + u_i - u_i^- and x_i <-
  sum_j W_ij (x_j + y_j). A round sends two models' worth of data. With
  W = 11'/N it is `ssgd`. For local steps between rounds, see `k_gt`.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    mixing: W, doubly stochastic, which may change between rounds. Default: a
      ring with equal weights.

  Raises:
    ValueError: if `mixing` is not a mixing; from `init`, if the rows or columns
      of W do not sum to one, or if W does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.gradient_tracking(
    ...     optax.sgd(0.1), mixing=pr.graphs.ring())

  Reference:
    Pu, Nedic 2018, Distributed stochastic gradient tracking methods (arXiv
    1805.11454); Koloskova, Lin, Stich 2021, An improved analysis of gradient
    tracking for decentralized machine learning (arXiv 2202.03836). The form
    with c_i, and the optimizer's step in place of the gradient, follow the code
    of Vogels et al. 2021 (see `relay_sgd`). Not verified: the equation numbers.
  """
  W = ring() if mixing is None else check_mixing(mixing)
  return algorithm(
    'gradient_tracking',
    requires(W, keeps_the_mean),
    remember(c=zeros),
    let(before='params'),
    step(local),
    let(
      u=lambda params, before: params - before,
      params=lambda params, c: params + c,
      c=lambda c, u: c + u,
    ),
    sync(W, ('params', 'c')),
    let(c=lambda c, u: c - u),
  )


def d2(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """D^2, or exact diffusion: a correction that is not sent.

    x_i+ = sum_j W_ij (x_j + u_j + c_j)
    c_i <- x_i+ - x_i - u_i,  c_i = 0 initially

  which is x+ = W (2 x - x^- + u - u^-). A round sends one model, half of what
  `gradient_tracking` sends. With W = 11'/N it is `ssgd`.

  It is unstable if an eigenvalue of W is below -1/3. For an even number of
  replicas, the ring with equal weights has an eigenvalue of exactly -1/3.

  The correction adds up rounding errors: after 2500 steps with exact gradients,
  the replicas are up to 3% from the optimum in float32, and 1.5e-9% in float64
  (docs/gallery.md).

  Args:
    local: an optimizer for every replica, or a stage that takes its local step.
    mixing: W, symmetric and doubly stochastic, with eigenvalues > -1/3. The
      theory has one constant W; if a mixing has several, each must meet the
      conditions. Default: `ring(0.5)`.

  Raises:
    ValueError: if `mixing` is not a mixing; from `init`, if W is not symmetric,
      if an eigenvalue is not > -1/3, if its rows do not sum to one, or if it
      does not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.d2(optax.sgd(0.1), mixing=pr.graphs.ring(0.5))

  Reference:
    Tang, Lian, Yan, Zhang, Liu 2018, D^2: Decentralized training over
    decentralized data (arXiv 1803.07068); Yuan, Ying, Zhao, Sayed 2017, Exact
    diffusion for distributed optimization and learning (arXiv 1702.05122),
    whose W is (I + W) / 2 of a doubly stochastic W. The form with c_i follows
    the code of Vogels et al. 2021 (see `relay_sgd`). Not verified: the
    algorithm numbers.
  """
  W = ring(0.5) if mixing is None else check_mixing(mixing)
  return algorithm(
    'd2',
    requires(W, symmetric_above(-1 / 3, '-1/3'), keeps_the_mean),
    remember(c=zeros),
    step(local),
    let(moved='params', params=lambda params, c: params + c),
    sync(W),
    let(c=lambda params, moved: params - moved),
  )


def extra(
  tx: optax.GradientTransformation, *, mixing: Mixing | None = None
) -> ReplicaTransformation:
  """EXTRA: D-PSGD (order A) that corrects accumulated mixing errors.

    x_i+ = sum_j W_ij x_j + u_i + c_i
    c_i <- c_i + (sum_j W_ij x_j - x_i) / 2,  c_i = 0 initially

  which is x^{k+2} = (I + W) x^{k+1} - (I + W) / 2 x^k + u^{k+1} - u^k. A round
  sends one model, while the gradient is taken. With W = 11'/N it is not `ssgd`,
  because the last steps are not mixed, as in `d_psgd`.

  The rounding errors of W x accumulate in c_i. In single precision, a ring with
  weights of 1/3 moves the result by 1e-8 of x in every step. Weights that are
  sums of powers of two, as in `ring(0.5)`, do not.

  Args:
    tx: an optimizer for every replica.
    mixing: W, symmetric and doubly stochastic, with eigenvalues > -1. The
      theory has one constant W. Default: `ring(0.5)`.

  Raises:
    ValueError: if `mixing` is not a mixing; from `init`, if W is not symmetric,
      if an eigenvalue is not > -1, if its rows do not sum to one, or if it does
      not fit the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.extra(optax.sgd(0.1), mixing=pr.graphs.torus())

  Reference:
    Shi, Ling, Wu, Yin 2015, EXTRA: An exact first-order algorithm for
    decentralized consensus optimization (arXiv 1404.6264), with the paper's
    choice (I + W) / 2 of its second matrix. It was written from memory of the
    paper. Not verified: the equation numbers. The paper has exact gradients and
    no momentum.
  """
  W = ring(0.5) if mixing is None else check_mixing(mixing)
  return algorithm(
    'extra',
    requires(W, symmetric_above(-1, '-1'), keeps_the_mean),
    remember(c=zeros),
    gradient(),
    local_update(tx, into='u'),
    let(mixed='params'),
    sync(W, 'mixed'),
    let(
      before='params',
      params=lambda mixed, u, c: mixed + u + c,
      c=lambda c, mixed, before: c + (mixed - before) / 2,
    ),
  )


def k_gt(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int | Schedule,
  learning_rate: optax.ScalarOrSchedule,
  outer_learning_rate: float = 1.0,
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """K-GT: gradient tracking with K local steps between rounds.

  A round begins at x_i. K times, y_i <- y_i - gamma (G_i(y_i) + c_i); then

    s_i = (x_i - y_i) / (K gamma)
    c_i <- c_i + sum_j W_ij s_j - s_i,  c_i = 0 initially
    x_i <- sum_j W_ij (x_j - K gamma eta s_j)

  A round sends two models' worth of data. With W = 11'/N and eta = 1 it is
  `scaffold`.

  The correction -gamma c_i is added to the step of any `local`, as in
  `scaffold`. With momentum, s_i is the mean velocity.

  Args:
    local: an optimizer for every replica, or a stage that takes its local step;
      SGD in the paper.
    period: K, local steps in a round, or a schedule.
    learning_rate: gamma, the learning rate of `local`: a number or a schedule
      of the step. With a schedule K gamma is the sum over the round.
    outer_learning_rate: eta, > 0. Default: 1.
    mixing: W, doubly stochastic. Default: a ring with equal weights.

  Raises:
    ValueError: if an argument has the wrong type or is out of range; from
      `init`, if the rows or columns of W do not sum to one, or it does not fit
      the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.k_gt(optax.sgd(0.1), period=4, learning_rate=0.1)

  Reference:
    Liu, Lin, Koloskova, Stich 2023, Decentralized gradient tracking with local
    steps (arXiv 2301.01313). The update was read in another implementation, not
    in the paper. Not verified: the number of its algorithm.
  """
  W = ring() if mixing is None else check_mixing(mixing)
  rate = as_rate(learning_rate)
  eta = check_number(
    'outer_learning_rate', outer_learning_rate, lambda x: x > 0, '> 0'
  )
  return algorithm(
    'k_gt',
    requires(W, keeps_the_mean),
    remember(x0='params', c=zeros, total=0.0),
    step(local),
    let(
      params=lambda params, c, step: params - rate(step) * c,
      total=lambda total, step: total + rate(step),
    ),
    at(
      rounds(period),
      let(s=lambda x0, params, total: per_unit(x0 - params, total), mixed='s'),
      sync(W, ('x0', 'mixed')),
      let(
        c=lambda c, s, mixed: c + (mixed - s),
        params=lambda x0, mixed, total: x0 - eta * total * mixed,
        x0='params',
        total=0.0,
      ),
    ),
  )


def qg_dsgdm(
  tx: optax.GradientTransformation,
  *,
  learning_rate: optax.ScalarOrSchedule,
  momentum: float,
  mixing: Mixing | None = None,
) -> ReplicaTransformation:
  """QG-DSGDm: momentum of each replica's whole movement, including mixing.

    x_i+ = sum_j W_ij (x_j - gamma (beta m_j + G_j))
    m_i <- beta m_i + (1 - beta) (x_i - x_i+) / gamma,  m_i = 0 initially

  The buffer follows the common direction, whereas local momentum follows the
  replica's own data. The method is not exact: with exact gradients it stops at
  the point of `diffusion`. With beta = 0 it is `diffusion`.

  Args:
    tx: the optimizer that receives beta m_i + G_i: SGD with the learning rate
      gamma and without momentum.
    learning_rate: gamma, the learning rate of `tx`: a number or a schedule of
      the step. Where it is 0, nothing is added to m_i.
    momentum: beta, in [0, 1). The paper's experiments use 0.9 (from memory, not
      verified).
    mixing: W, doubly stochastic. Default: a ring with equal weights.

  Raises:
    ValueError: if an argument has the wrong type or is out of range; from
      `init`, if the rows or columns of W do not sum to one, or it does not fit
      the number of replicas.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = pr.qg_dsgdm(
    ...     optax.sgd(0.1), learning_rate=0.1, momentum=0.9)

  Reference:
    Lin, Karimireddy, Stich, Jaggi 2021, Quasi-global momentum: Accelerating
    decentralized deep learning on heterogeneous data (arXiv 2102.04761), the
    heavy-ball form. Not verified: the number of its algorithm. The code of
    Vogels et al. 2021 (see `relay_sgd`) uses Nesterov momentum, G_i + beta
    (beta m_i + G_i), and 1e-8 in place of a smaller learning rate.
  """
  W = ring() if mixing is None else check_mixing(mixing)
  rate = as_rate(learning_rate)
  beta = check_number('momentum', momentum, lambda b: 0 <= b < 1, 'in [0, 1)')
  return algorithm(
    'qg_dsgdm',
    requires(W, keeps_the_mean),
    remember(m=zeros),
    let(before='params'),
    gradient(),
    let(grads=lambda grads, m: grads + beta * m),
    local_update(tx),
    sync(W),
    let(
      moved=lambda before, params, step: per_unit(before - params, rate(step)),
      m=lambda m, moved: beta * m + (1 - beta) * moved,
    ),
  )
