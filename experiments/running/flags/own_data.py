"""Check the user's own arrays before a run uses them.

JAX has no strings or objects and converts 64-bit numbers to 32 bits, where an
integer that is too large would silently change its value.
"""

from collections.abc import Mapping
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.data.datasets import Dataset

_INT32, _FLOAT32 = np.iinfo(np.int32), np.finfo(np.float32)


def as_arrays(who: str, tree: Any) -> Any:
  """Return a tree as NumPy arrays.

  Args:
    who: name of the owner of the tree, for messages.
    tree: tree of arrays or lists of numbers; a list becomes one array.

  Raises:
    ValueError: if a leaf is not an array of numbers, or a number does not fit
      into 32 bits.

  Example:
    >>> as_arrays('data', {'x': [1, 2]})
    {'x': array([1, 2])}
    >>> as_arrays('data', {'x': ['a']})
    Traceback (most recent call last):
    ValueError: data: x must be an array of numbers, got <U1
  """
  if isinstance(tree, Mapping):
    return {name: _as_array(f'{who}: {name}', x) for name, x in tree.items()}
  return jax.tree.map(lambda x: _as_array(f'{who}: a leaf', x), tree)


def _as_array(name: str, given: Any) -> Any:
  if isinstance(given, Mapping):
    return as_arrays(name, given)
  try:
    array = np.asarray(given)
  except (TypeError, ValueError) as error:  # a ragged list, or random keys
    raise ValueError(
      f'{name} must be an array of numbers, got {type(given).__name__}: {error}'
    ) from None
  if not jnp.issubdtype(array.dtype, np.number) and array.dtype != bool:
    raise ValueError(f'{name} must be an array of numbers, got {array.dtype}')
  _check_range(name, array)
  return array


def _check_range(name: str, array: np.ndarray) -> None:
  if array.dtype in (np.int64, np.uint64) and array.size:
    if _INT32.min <= array.min() <= array.max() <= _INT32.max:
      return
    raise ValueError(
      f'{name} must be in int32, got {array.min()} .. {array.max()}'
    )
  if array.dtype == np.float64:
    size = np.abs(array)
    if (np.isfinite(size) & (size > _FLOAT32.max)).any():
      raise ValueError(
        f'{name} must be in float32, got {array.min()} .. {array.max()}'
      )


def check_source(who: str, dataset: Dataset, *, stream: bool) -> Dataset:
  """Check the training examples of a user's dataset that are not arrays.

  Args:
    who: name of the owner, for messages.
    dataset: the dataset; its `train` should be a source.
    stream: whether the run streams its data.

  Raises:
    ValueError: if it is no source, the run does not stream, or an example is
      not a dict of arrays.
  """
  if not stream:
    raise ValueError(
      f'{who}: train must be a dict of arrays, got '
      f'{type(dataset.train).__name__}; for a source of examples add --stream'
    )
  try:
    example = dataset.example()
  except ValueError as error:
    raise ValueError(f'{who}: train: {error}') from error
  if not isinstance(example, Mapping):
    raise ValueError(
      f'{who}: an example of train must be a dict of arrays, got '
      f'{type(example).__name__}'
    )
  return dataset


def are_labels(x: Any) -> bool:
  """Whether an array, or its shape, is a vector of integers."""
  return (
    x is not None and np.issubdtype(x.dtype, np.integer) and len(x.shape) == 1
  )


def check_split(who: str, split: Mapping[str, Any]) -> None:
  """Check the shapes of images, labels and texts in a split.

  Args:
    who: name of the owner of the split, for messages.
    split: name -> array.

  Raises:
    ValueError: if an array has the wrong shape, or an image is not finite.
  """
  for name, wanted, fits in (
    ('image', '[n, ..., channels]', lambda x: x.ndim >= 2),
    ('label', 'int[n]', lambda x: x.ndim == 1),
    ('text', 'int[n, length + 1]', lambda x: x.ndim == 2 and x.shape[1] > 1),
  ):
    if name in split and not fits(split[name]):
      x = split[name]
      hint = '; take the argmax of one-hot labels' if name == 'label' else ''
      raise ValueError(
        f'{who}: {name} must be {wanted}, got {x.dtype}{list(x.shape)}{hint}'
      )
  if 'image' in split:
    image = split['image']
    if np.iscomplexobj(image) or not np.isfinite(image).all():
      raise ValueError(f'{who}: image must be of finite real numbers')


def check_classes(
  who: str, split: Mapping[str, Any], num_classes: object
) -> None:
  """Check that labels and characters are in 0 .. num_classes - 1.

  Args:
    who: name of the owner of the split, for messages.
    split: name -> array.
    num_classes: number of labels or distinct characters.

  Raises:
    ValueError: if a value is out of range, or `num_classes` is not an integer.
  """
  for name in ('label', 'text'):
    if name not in split:
      continue
    try:
      most = operator.index(num_classes) - 1  # type: ignore[arg-type]
    except TypeError:
      raise ValueError(
        f'{who}: num_classes must be an integer, got {num_classes!r}'
      ) from None
    x = split[name]
    whole = np.issubdtype(x.dtype, np.integer)
    if not whole or not 0 <= x.min() <= x.max() <= most:
      raise ValueError(
        f'{who}: {name} must be integers in 0 .. num_classes - 1 = {most}, got '
        f'{x.dtype} in {x.min()} .. {x.max()}'
      )
