"""EVALUATION POINTS: optimizers whose parameters are not what is evaluated.

Some optimizers take gradients at points that are not their result. Their
result is a function of the parameters and of the optimizer's state, and an
algorithm's output, which is averaged and evaluated, must be made of it.
"""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from prsgd_jax.base import ArrayTree, over_block
from prsgd_jax.checks import check_optax

EvaluatedFn = Callable[[Any, Any], Any]


@struct.dataclass
class EvaluatedAtState:
  """State of an optimizer that says where it is evaluated.

  Attributes:
    inner: the state of the optimizer.
    fn: `(inner, params) -> params`.
  """

  inner: Any
  fn: EvaluatedFn = struct.field(pytree_node=False)


def evaluated_at(
  tx: optax.GradientTransformation, fn: EvaluatedFn
) -> optax.GradientTransformation:
  """Says at which point an optimizer's result is evaluated.

  `consensus` and evaluation then take fn(state, params) of each replica in
  place of its parameters. Training is that of `tx`. Batch statistics belong to
  the points at which gradients were taken: estimate them again for the point
  that is evaluated, with `make_reestimate`.

  `optax.contrib.schedule_free`, `optax.contrib.sam` and `optax.lookahead` need
  no such line. Their points are known.

  Args:
    tx: any optax transformation.
    fn: `(state of tx, params) -> params`, of one replica, such as
      `optax.contrib.schedule_free_eval_params`.

  Raises:
    ValueError: if `tx` is not an optax transformation, or `fn` is not callable.

  Example:
    >>> import jax, optax, prsgd_jax as pr
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> def fn(state, params):
    ...   return jax.tree.map(
    ...       lambda x, v: x - 0.09 * v, params, state[0].trace)
    >>> ahead = pr.optimizers.evaluated_at(tx, fn)
    >>> algorithm = pr.k_avg(ahead, period=4)
  """
  check_optax('evaluated_at', tx)
  if not callable(fn):
    raise ValueError(
      'evaluated_at expects a function of the state and the parameters, got '
      f'{fn!r}'
    )
  tx = optax.with_extra_args_support(tx)

  def init(params: ArrayTree) -> EvaluatedAtState:
    return EvaluatedAtState(tx.init(params), fn)

  def update(
    updates: ArrayTree,
    state: EvaluatedAtState,
    params: Any = None,
    **extra: Any,
  ) -> tuple[ArrayTree, EvaluatedAtState]:
    updates, inner = tx.update(updates, state.inner, params, **extra)
    return updates, EvaluatedAtState(inner, fn)

  return optax.GradientTransformationExtraArgs(init, update)


def evaluation_points(params: ArrayTree, opt_state: ArrayTree) -> ArrayTree:
  """Returns the points of a block to evaluate: `params`, for most optimizers.

  Raises:
    ValueError: if the optimizer has several such points, or one that does not
      cover all parameters.
  """
  if isinstance(params, optax.LookaheadParams):
    return optax.LookaheadParams(fast=params.slow, slow=params.slow)
  found = states_with_points(opt_state)
  if not found:
    return params
  if len(found) > 1:
    raise ValueError(
      f'the optimizer has {len(found)} states such as {type(found[0]).__name__}'
      ', each with an evaluation point of its own; say which one counts by '
      'pr.optimizers.evaluated_at(tx, fn)'
    )
  points = over_block(POINTS[type(found[0])])(found[0], params)
  return jax.tree.map(lambda x, y: x.astype(y.dtype), points, params)


def states_with_points(opt_state: ArrayTree) -> list[Any]:
  """Returns the nodes that say where their optimizer is evaluated."""

  def is_one(node: Any) -> bool:
    if isinstance(node, optax.contrib.SAMState) and node.cache is None:
      return False  # its adversarial steps are inside of an update
    return type(node) in POINTS

  return [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]


def _schedule_free(
  state: optax.contrib.ScheduleFreeState, params: ArrayTree
) -> ArrayTree:
  _check_covers(state, state.z, params)
  return optax.contrib.schedule_free_eval_params(state, params)


def _sam(state: optax.contrib.SAMState, params: ArrayTree) -> ArrayTree:
  """The point that the adversarial steps began at."""
  _check_covers(state, state.cache, params)
  is_there = state.steps_since_sync == 0
  return jax.tree.map(
    lambda x, start: jnp.where(is_there, x, start), params, state.cache
  )


def _lookahead(state: optax.LookaheadState, params: ArrayTree) -> ArrayTree:
  raise ValueError(
    'optax.lookahead has two points; start from '
    'params=optax.LookaheadParams.init_synced(params), and read params.fast in '
    'loss_fn'
  )


def _check_covers(state: Any, kept: ArrayTree, params: ArrayTree) -> None:
  if jax.tree.structure(kept) != jax.tree.structure(params):  # type: ignore[operator]
    raise ValueError(
      f'the {type(state).__name__} of the optimizer covers a part of the '
      'parameters only, so that its evaluation point is not known; say it by '
      'pr.optimizers.evaluated_at(tx, fn)'
    )


# State -> the point of one replica, of it and the parameters.
POINTS: dict[type, EvaluatedFn] = {
  EvaluatedAtState: lambda state, params: state.fn(state.inner, params),
  optax.contrib.ScheduleFreeState: _schedule_free,
  optax.contrib.SAMState: _sam,
  optax.LookaheadState: _lookahead,
}
