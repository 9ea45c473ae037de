"""EVALUATION POINTS: optimizers whose result is not the parameters.

Some optimizers take gradients at points that are not their result. The result
is a function of the parameters and the optimizer's state. The output of an
algorithm, which is averaged and evaluated, must use it.
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
  """State of an optimizer with an explicit evaluation point.

  Attributes:
    inner: the state of the optimizer.
    fn: `(inner, params) -> params`, the evaluation point.
  """

  inner: Any
  fn: EvaluatedFn = struct.field(pytree_node=False)


def evaluated_at(
  tx: optax.GradientTransformation, fn: EvaluatedFn
) -> optax.GradientTransformation:
  """Return an optimizer whose result is evaluated at fn(state, params).

  `consensus` and evaluation then use fn(state, params) of each replica in place
  of its parameters. Training does not change. Batch statistics belong to the
  points at which gradients were taken, so estimate them for the evaluated point
  with `make_reestimate`.

  `optax.contrib.schedule_free`, `optax.contrib.sam` and `optax.lookahead` do
  not need this wrapper, because their points are known.

  Args:
    tx: an optax transformation.
    fn: `(state of tx, params) -> params`, for one replica, such as
      `optax.contrib.schedule_free_eval_params`.

  Returns:
    An optax transformation that trains like `tx`.

  Raises:
    ValueError: if `tx` is not an optax transformation, or if `fn` is not
      callable.

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
  """Return the evaluation points of a block, for most optimizers `params`.

  Raises:
    ValueError: if the optimizer has several such points, or one that covers
      only some parameters.
  """
  if isinstance(params, optax.LookaheadParams):
    return optax.LookaheadParams(fast=params.slow, slow=params.slow)
  found = states_with_points(opt_state)
  if not found:
    return params
  if len(found) > 1:
    raise ValueError(
      f'the optimizer has {len(found)} states such as {type(found[0]).__name__}'
      ', each with a different evaluation point; choose one with '
      'pr.optimizers.evaluated_at(tx, fn)'
    )
  points = over_block(POINTS[type(found[0])])(found[0], params)
  return jax.tree.map(lambda x, y: x.astype(y.dtype), points, params)


def states_with_points(opt_state: ArrayTree) -> list[Any]:
  """Return the nodes of a state that define an evaluation point."""

  def is_one(node: Any) -> bool:
    if isinstance(node, optax.contrib.SAMState) and node.cache is None:
      return False  # because its adversarial steps are inside an update
    return type(node) in POINTS

  return [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]


def _schedule_free(
  state: optax.contrib.ScheduleFreeState, params: ArrayTree
) -> ArrayTree:
  _check_covers(state, state.z, params)
  return optax.contrib.schedule_free_eval_params(state, params)


def _sam(state: optax.contrib.SAMState, params: ArrayTree) -> ArrayTree:
  """Return the point at which the adversarial steps started."""
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
      f'the {type(state).__name__} of the optimizer covers only a part of the '
      'parameters, so its evaluation point is unknown; define it with '
      'pr.optimizers.evaluated_at(tx, fn)'
    )


# Name of a state -> function of (state, params) that returns the point.
POINTS: dict[type, EvaluatedFn] = {
  EvaluatedAtState: lambda state, params: state.fn(state.inner, params),
  optax.contrib.ScheduleFreeState: _schedule_free,
  optax.contrib.SAMState: _sam,
  optax.LookaheadState: _lookahead,
}
