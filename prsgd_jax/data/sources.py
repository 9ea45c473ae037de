"""SOURCES: examples by number, read when they are needed.

A source has `len(source)` and `source[i]`, as a list, a TFDS data source or a
data set of PyTorch has. A method `__getitems__(rows)`, which returns a list of
examples, is faster if there is one. A tree of arrays `[n, ...]` is a source,
too: `np.load(path, mmap_mode='r')` stays on the disk.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from prsgd_jax.base import ArrayTree
from prsgd_jax.data.held import Held
from prsgd_jax.tree_types import describe, difference, is_array, path_name

# A change of one example: (example, generator) -> example.
ExampleFn = Callable[[Any, np.random.Generator], Any]


class Source(Protocol):
  """Examples by number, from 0; an example is a tree of arrays or numbers."""

  def __len__(self) -> int: ...

  def __getitem__(self, row: int) -> Any: ...


class DataError(ValueError):
  """An example cannot be read or used; one line that names it."""


class Arrays:
  """A tree of arrays `[n, ...]` as a source, which reads many rows at once.

  Args:
    tree: the arrays, such as memory maps.

  Example:
    >>> source = Arrays({'x': np.arange(6).reshape(3, 2)})
    >>> len(source), source[1]
    (3, {'x': array([2, 3])})
    >>> source.read(np.array([2, 0]))
    {'x': array([[4, 5],
           [0, 1]])}
  """

  def __init__(self, tree: ArrayTree):
    self.tree = tree

  def __len__(self) -> int:
    return len(jax.tree.leaves(self.tree)[0])

  def __getitem__(self, row: int) -> ArrayTree:
    return jax.tree.map(lambda x: np.asarray(x[row]), self.tree)

  def __repr__(self) -> str:
    return describe(self.tree)

  def read(self, rows: np.ndarray) -> ArrayTree:
    """Return the examples of rows, leaves `[k, ...]`.

    Args:
      rows: int[k].
    """
    return jax.tree.map(lambda x: np.asarray(x[rows]), self.tree)

  def identity(self) -> Hashable:
    """Return a key that is equal for another wrapper of the same arrays."""
    leaves, treedef = jax.tree.flatten(self.tree)
    return treedef, *map(Held, leaves)


def as_source(given: Any) -> Source:
  """Return a source of what the caller passed.

  Args:
    given: a source, or a tree of arrays of one length.

  Raises:
    ValueError: if it is neither, or empty.

  Example:
    >>> as_source({'x': np.zeros((3, 2)), 'y': np.zeros(3)})
    {'x': float64[3,2], 'y': float64[3]}
  """
  if isinstance(given, Mapping) or is_array(given):
    leaves = jax.tree.leaves(given)
    sizes = {np.shape(x)[0] if np.shape(x) else 0 for x in leaves}
    if len(sizes) == 1 and 0 not in sizes and all(map(is_array, leaves)):
      return Arrays(given)
  elif isinstance(given, str) or not hasattr(given, '__getitem__'):
    pass
  elif hasattr(given, '__len__') and len(given) > 0:
    return given
  raise ValueError(
    'pipeline expects a source of examples with len(source) >= 1 and '
    'source[i], or a tree of arrays of one length >= 1, got '
    f'{describe(given)}'
  )


def identity(source: Source) -> Hashable:
  """Return a key by which a source is recognized."""
  return source.identity() if isinstance(source, Arrays) else Held(source)


def read(
  source: Source,
  rows: np.ndarray,
  example_fn: ExampleFn | None,
  generators: Callable[[int], np.random.Generator],
) -> ArrayTree:
  """Read examples and stack them.

  Args:
    source: the examples.
    rows: int[k], their numbers.
    example_fn: change of an example. Default: none.
    generators: place in `rows` -> the generator of `example_fn`.

  Returns:
    A tree of arrays `[k, ...]`. 64-bit numbers are 32-bit ones, as in JAX.

  Raises:
    DataError: if an example cannot be read, is not a tree of numbers, or
      differs from the first one in structure, shapes or types.
  """
  if isinstance(source, Arrays) and example_fn is None:
    return narrowed(source.read(rows), rows)
  examples = _examples(source, rows)
  if example_fn is not None:
    for k, example in enumerate(examples):
      try:
        examples[k] = example_fn(example, generators(k))
      # Any error, because it comes from a function of the caller.
      except Exception as error:
        raise _unreadable(rows[k], 'changed by example_fn', error) from error
  return narrowed(_stack(examples, rows), rows)


def _examples(source: Source, rows: np.ndarray) -> list[Any]:
  numbers = [int(row) for row in rows]
  read_many = getattr(source, '__getitems__', None)
  if read_many is not None:
    try:
      return list(read_many(numbers))
    # Any error, because the examples are read again one by one, to find which.
    except Exception:
      read_many = None
  found = []
  for number in numbers:
    try:
      found.append(source[number])
    except Exception as error:
      raise _unreadable(number, 'read', error) from error
  return found


def _unreadable(number: int, what: str, error: Exception) -> DataError:
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  text = text if len(text) <= 160 else text[:157] + '...'
  return DataError(
    f'example {number} of the source cannot be {what} ({text}); look at '
    f'source[{number}]'
  )


def _stack(examples: Sequence[Any], rows: np.ndarray) -> ArrayTree:
  first, treedef = jax.tree.flatten(examples[0])
  if not first:
    raise DataError(f'example {rows[0]} of the source has no arrays')
  into = [
    np.empty((len(rows), *np.shape(x)), np.asarray(x).dtype) for x in first
  ]
  for k, example in enumerate(examples):
    leaves = jax.tree.leaves(example)
    found: Any = jax.tree.structure(example)
    if found != treedef or any(map(_differs, first, leaves)):
      arrays = (jax.tree.map(np.asarray, x) for x in (examples[0], example))
      raise DataError(
        f'example {rows[k]} of the source differs from example {rows[0]}: '
        f'{difference(*arrays)}; all examples must be alike'
      )
    for array, x in zip(into, leaves, strict=True):
      array[k] = x
  return jax.tree.unflatten(treedef, into)


def _differs(one: Any, other: Any) -> bool:
  if isinstance(one, np.ndarray | np.generic):
    return (
      getattr(other, 'dtype', None) != one.dtype or other.shape != one.shape
    )
  one, other = np.asarray(one), np.asarray(other)
  return one.dtype != other.dtype or one.shape != other.shape


def narrowed(batch: ArrayTree, rows: np.ndarray) -> ArrayTree:
  """Convert 64-bit numbers to the types that JAX has.

  Args:
    batch: a tree of arrays `[k, ...]`.
    rows: int[k], the numbers of the examples, for the message.

  Raises:
    DataError: if an array is not of numbers, or one does not fit.
  """

  def narrow(path: Any, x: np.ndarray) -> np.ndarray:
    where = path_name(path)
    name = f'{where!r} of ' if where else ''
    if not is_array(x):
      raise DataError(
        f'{name}example {rows[0]} of the source must be of numbers, got '
        f'{describe(x[0])}; convert it by example_fn'
      )
    kind = jax.dtypes.canonicalize_dtype(x.dtype)
    if kind == x.dtype:
      return x
    if kind.kind in 'iu' and x.size:
      bounds = np.iinfo(kind)
      wrong = (x < bounds.min) | (x > bounds.max)
      if wrong.any():
        k = int(np.argmax(wrong.reshape(len(x), -1).any(1)))
        raise DataError(
          f'{name}example {rows[k]} of the source must be in {kind}, got '
          f'{x[wrong][0]}'
        )
    return x.astype(kind)

  return jax.tree.map_with_path(narrow, batch)
