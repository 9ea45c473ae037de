"""Checks of the arguments and results of a caller's functions, while traced.

JAX also finds most mistakes, but later and with unrelated messages, such as an
axis that cannot be squeezed. These checks name the function and the leaf.
"""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from prsgd_jax.base import ArrayTree
from prsgd_jax.tree_types import (
  describe,
  difference,
  is_array,
  path_name,
)

LOSS = 'loss_fn(params, model_state, batch, key)'
BATCH = 'batch_fn(data, step, replica, key)'
EVAL = 'eval_fn(params, model_state, batch)'


def check_signature(signature: str, fn: Any) -> None:
  """Check that a function accepts the arguments of a call.

  Args:
    signature: the call in the engine, such as 'loss_fn(params, batch)'.
    fn: the object that the caller passed.

  Raises:
    ValueError: if `fn` is not a function, or if it takes another number of
      arguments.
  """
  name, _, arguments = signature.partition('(')
  if not callable(fn):
    raise ValueError(
      f'{name} must be a function, {signature}, got {describe(fn)}'
    )
  try:
    found = inspect.signature(fn)
  except (TypeError, ValueError):  # some built-in functions have no signature
    return
  try:
    found.bind(*arguments.split(','))
  except TypeError as error:
    raise ValueError(
      f'{name} is called as {signature}, but takes {found}: {error}'
    ) from None


def checked_loss(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
  """Return the loss of one replica with its results checked.

  Raises:
    ValueError: from the call, unless it returns (loss, (model_state, metrics))
      with a float scalar, a model state of unchanged types, and a dict of
      arrays.
  """

  @functools.wraps(loss_fn)
  def checked(
    params: ArrayTree, model_state: ArrayTree, batch: Any, key: Any
  ) -> Any:
    found = loss_fn(params, model_state, batch, key)
    if not (_is_pair(found) and _is_pair(found[1])):
      raise ValueError(
        'loss_fn must return (loss, (model_state, metrics)), such as '
        f'(loss, (model_state, {{}})), got {describe(found)}'
      )
    loss, (new_state, metrics) = found
    _check_scalar(loss)
    _check_kept(model_state, new_state)
    _check_metrics(metrics)
    return jnp.asarray(loss), (new_state, dict(metrics))

  return checked


def checked_values(eval_fn: Callable[..., Any]) -> Callable[..., Any]:
  """Return an `eval_fn` whose result is checked to be a dict of arrays.

  Raises:
    ValueError: from the call, if the result is not a dict of arrays.
  """

  @functools.wraps(eval_fn)
  def checked(params: ArrayTree, model_state: ArrayTree, batch: Any) -> Any:
    values = eval_fn(params, model_state, batch)
    if not isinstance(values, Mapping) or not all(
      map(is_array, values.values())
    ):
      raise ValueError(
        'eval_fn must return a dict of arrays, one value for each example, got '
        f'{describe(values)}'
      )
    return {name: jnp.asarray(value) for name, value in values.items()}

  return checked


def check_floats(params: ArrayTree) -> None:
  """Raise ValueError if a parameter is not a float and so has no gradient."""
  for path, x in jax.tree.flatten_with_path(params)[0]:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      raise ValueError(
        f'a parameter must be a float, got {describe(x)} in '
        f'{path_name(path) or "params"}; keep counters and keys in model_state'
      )


def _is_pair(x: Any) -> bool:
  return isinstance(x, tuple | list) and len(x) == 2


def _check_scalar(loss: Any) -> None:
  is_scalar = is_array(loss) and jnp.shape(loss) == ()
  if not is_scalar or not jnp.issubdtype(jnp.asarray(loss).dtype, jnp.floating):
    raise ValueError(
      'the loss that loss_fn returns must be a float scalar, got '
      f'{describe(loss)}; take its mean, or cast it to float32'
    )


def _check_kept(before: ArrayTree, after: ArrayTree) -> None:
  change = difference(before, after)
  if change:
    raise ValueError(
      'loss_fn must return model_state with the structure, shapes and dtypes '
      f'of its argument, but {change}; cast it back, or remove collections '
      "that grow (such as flax's 'losses') from model_state"
    )


def _check_metrics(metrics: Any) -> None:
  if not isinstance(metrics, Mapping) or not all(
    isinstance(name, str) for name in metrics
  ):
    raise ValueError(
      'loss_fn must return metrics as a dict from names to arrays, such as '
      f"{{'accuracy': accuracy}}, got {describe(metrics)}"
    )
  for path, x in jax.tree.flatten_with_path(dict(metrics))[0]:
    if not is_array(x):
      raise ValueError(
        f'a metric of loss_fn must be an array, got {describe(x)} for '
        f'{path_name(path)!r}'
      )
