"""Descriptions of the types of trees, on one line, for error messages."""

from typing import Any

import jax
import numpy as np

# Maximum length of a description.
_MAX_LENGTH = 80


def describe(x: Any) -> str:
  """Return a short description of `x`.

  Args:
    x: any object that a caller passed.

  Example:
    >>> describe((np.zeros(3, np.float32), {'w': 1}))
    "(float32[3], {'w': 1})"
    >>> describe(len)
    'the function len'
  """
  text = _describe(x)
  if len(text) > _MAX_LENGTH:
    return text[: _MAX_LENGTH - 3] + '...'
  return text


def _describe(x: Any) -> str:
  if hasattr(x, 'dtype') and hasattr(x, 'shape'):
    return leaf_type(x)
  if type(x) is dict:
    return '{' + ', '.join(f'{k!r}: {_describe(v)}' for k, v in x.items()) + '}'
  if type(x) in (tuple, list):
    inside = ', '.join(map(_describe, x))
    if type(x) is list:
      return f'[{inside}]'
    return f'({inside},)' if len(x) == 1 else f'({inside})'
  if x is None or isinstance(x, bool | int | float | complex | str | bytes):
    return repr(x)
  if isinstance(x, type):
    return f'the class {x.__name__}'
  if callable(x) and hasattr(x, '__name__'):
    return f'the function {x.__name__}'
  name = type(x).__name__
  return f'{"an" if name[0] in "AEIOUaeiou" else "a"} {name}'


def leaf_type(x: Any) -> str:
  """Return the dtype and shape of an array, such as 'float32[3,2]'.

  Example:
    >>> leaf_type(np.zeros((3, 2), np.float32))
    'float32[3,2]'
  """
  return f'{x.dtype}[{",".join(map(str, x.shape))}]'


def path_name(path: tuple[Any, ...]) -> str:
  """Return the path of a leaf, joined by dots."""
  return jax.tree_util.keystr(path, simple=True, separator='.')


def difference(before: Any, after: Any, axes: int = 0) -> str | None:
  """Return the first difference in the types of two trees, or None.

  Args:
    before: a tree of arrays.
    after: the tree of arrays to compare with.
    axes: the number of leading axes to omit from the shapes. Default: 0.

  Example:
    >>> difference({'w': np.zeros(2)}, {'w': np.zeros(2), 'b': np.zeros(3)})
    'b: float32[3] is new'
    >>> difference({'w': np.zeros(2)}, {'w': np.zeros(2, np.int32)})
    'w: float32[2] became int32[2]'
  """
  old, new = _types(before, axes), _types(after, axes)
  for path in [*old, *new]:
    if old.get(path) != new.get(path):
      return _change(old.get(path), new.get(path))
  was, became = map(jax.tree.structure, (before, after))
  if was != became:  # type: ignore[operator]
    return f'{describe(before)} became {describe(after)}'
  return None


def _change(old: tuple[str, str] | None, new: tuple[str, str] | None) -> str:
  name, came = new or old or ('', '')
  change = f'{came} is gone'
  if new:
    change = f'{old[1]} became {came}' if old else f'{came} is new'
  return f'{name}: {change}' if name else change


def _types(tree: Any, axes: int) -> dict[str, tuple[str, str]]:
  """Return path -> (its name, the type of the leaf); names may repeat."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path): (path_name(path), _leaf_type(x, axes))
    for path, x in leaves
  }


def _leaf_type(x: Any, axes: int) -> str:
  if not is_array(x):
    return describe(x)
  shape = np.shape(x)[axes:]
  return leaf_type(jax.ShapeDtypeStruct(shape, jax.dtypes.result_type(x)))


def is_array(x: Any) -> bool:
  """Return whether JAX accepts `x` as an array of numbers or keys."""
  if hasattr(x, 'shape') and hasattr(x, 'dtype'):
    is_numpy = isinstance(x.dtype, np.dtype)  # bfloat16 has the kind V, too
    return not is_numpy or not (
      x.dtype.kind in 'OSUMm' or x.dtype.type is np.void
    )
  return isinstance(x, bool | int | float | complex)
