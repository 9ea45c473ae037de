"""DATA VALUES: descriptions of the batches that the replicas get.

A value holds arrays, or an iterator, and a recipe for batches. It knows no
replicas and no devices, because the trainer does. The trainer places arrays
once and compiles once, even if an equal value is created for every call.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from prsgd_jax.base import Array, ArrayTree
from prsgd_jax.checks import (
  check_bool,
  check_positive,
  check_positive_int,
  check_seed,
)
from prsgd_jax.data import gathering, samplers
from prsgd_jax.data.held import Held
from prsgd_jax.data.samplers import BatchFn, Sampler, Transform
from prsgd_jax.tracing.caller_functions import BATCH, check_signature
from prsgd_jax.tree_types import describe, is_array


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A way to make batches from arrays. `make` is ignored when comparing.

  Attributes:
    kind: name of the factory.
    num_examples: n, None if the arrays need not be examples.
    settings: arguments of the factory, by name.
    held: arguments of the factory that are compared by identity.
    make: `num_replicas -> batch_fn`, determined by the other attributes.
  """

  kind: str
  num_examples: int | None
  settings: tuple[tuple[str, Hashable], ...]
  held: tuple[Held, ...]
  make: Callable[[int], BatchFn] = dataclasses.field(compare=False, repr=False)


class Resident(NamedTuple):
  """Data that stay on the devices.

  Attributes:
    arrays: a tree of host arrays; the trainer places them on the devices.
    recipe: the way to make batches from the arrays.
  """

  arrays: ArrayTree
  recipe: Recipe

  def __repr__(self) -> str:
    """Return sizes instead of numbers, because the arrays are large."""
    known = self.recipe
    shown = [f'{name}={value!r}' for name, value in known.settings]
    if known.num_examples is not None:
      shown.insert(0, f'{known.num_examples} examples')
    return f'{known.kind}({", ".join(shown)})'


class Stream(NamedTuple):
  """Data that an iterator supplies.

  Attributes:
    iterator: iterator over host batches, one for each step.
    global_batch: whether leaves are `[N * batch, ...]`, not `[N, batch, ...]`.
  """

  iterator: Iterator[Any]
  global_batch: bool

  def __repr__(self) -> str:
    """Return the kind of the iterator, not its address."""
    what = describe(self.iterator)
    return f'stream({what}, global_batch={self.global_batch})'


def shared(
  arrays: ArrayTree,
  *,
  batch_size: int,
  seed: int = 0,
  transform: Transform | None = None,
) -> Resident:
  """Give every replica batches of all examples.

  The examples are shuffled in every epoch and dealt out in turn. In an epoch,
  all replicas together see every example once.

  The arrays are placed on every device. Do not write to them during a run,
  because the copy on the devices would not change.

  Args:
    arrays: a tree of arrays `[n, ...]`, such as `{'image': ..., 'label': ...}`.
      n is at most 2^23; use `stream` for more.
    batch_size: examples per replica and step, >= 1.
    seed: seed of the shuffles, in 0 .. 2^32 - 1. Default: 0.
    transform: `(key, batch) -> batch`, such as an augmentation, applied to each
      replica's batch on the device. Pass the same function each time, because
      each new one is compiled. Default: none.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if an argument is out of its range. `Trainer.run` raises it if
      the batches of all replicas have more examples than the data.

  Example:
    >>> import numpy as np, prsgd_jax as pr
    >>> pr.shared({'x': np.zeros((100, 3))}, batch_size=4)
    shared(100 examples, batch_size=4, seed=0)
  """
  n, batch_size, seed = _check(arrays, batch_size, seed)
  settings = {'batch_size': batch_size, 'seed': seed}
  draw = functools.partial(_shared, n, batch_size, seed)
  return _sampled('shared', arrays, settings, (), draw, transform)


def sharded(
  arrays: ArrayTree,
  *,
  batch_size: int,
  seed: int = 0,
  transform: Transform | None = None,
) -> Resident:
  """Give every replica batches of its own part of the examples.

  The examples are dealt out once, at random, in N parts whose sizes differ by
  one at most. A replica shuffles its part each time it has seen all of it.

  Args:
    arrays: a tree of arrays `[n, ...]`, which are placed on every device. Do
      not write to them during a run.
    batch_size: examples per replica and step, >= 1.
    seed: seed of the parts and shuffles, in 0 .. 2^32 - 1. Default: 0.
    transform: `(key, batch) -> batch`, applied on the device, see `shared`.
      Default: none.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if an argument is out of its range. `Trainer.run` raises it if
      a batch has more examples than the smallest part.

  Example:
    >>> import numpy as np, prsgd_jax as pr
    >>> pr.sharded({'x': np.zeros((100, 3))}, batch_size=4, seed=1)
    sharded(100 examples, batch_size=4, seed=1)
  """
  n, batch_size, seed = _check(arrays, batch_size, seed)
  settings = {'batch_size': batch_size, 'seed': seed}
  draw = functools.partial(_sharded, n, batch_size, seed)
  return _sampled('sharded', arrays, settings, (), draw, transform)


def dirichlet(
  arrays: ArrayTree,
  *,
  batch_size: int,
  alpha: float,
  labels: str | Array | np.ndarray = 'label',
  seed: int = 0,
  transform: Transform | None = None,
) -> Resident:
  """Give every replica its own part of the examples, with its own classes.

  Replica i draws shares of the classes q_i from Dirichlet(alpha p), where p are
  the shares in all examples. With a small alpha, the data of the replicas
  differ more. A part has n / N examples.

  Args:
    arrays: a tree of arrays `[n, ...]`, which are placed on every device. Do
      not write to them during a run.
    batch_size: examples per replica and step, >= 1.
    alpha: concentration, > 0 and finite: about one class per replica at 0.01,
      nearly equal shares at 1000.
    labels: the class of each example, numbers or texts `[n]`, or the name of
      the classes in `arrays`. Default: 'label'.
    seed: seed of the parts and shuffles, in 0 .. 2^32 - 1. Default: 0.
    transform: `(key, batch) -> batch`, applied on the device, see `shared`.
      Default: none.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if an argument is out of its range, or `labels` is not a name in
      `arrays`. `Trainer.run` raises it if a batch has more examples than a
      part.

  Example:
    >>> import numpy as np, prsgd_jax as pr
    >>> arrays = {'x': np.zeros((100, 3)), 'label': np.arange(100) % 10}
    >>> pr.dirichlet(arrays, alpha=0.1, batch_size=4)
    dirichlet(100 examples, alpha=0.1, batch_size=4, seed=0)

  Reference:
    Hsu, Qi, Brown 2019, Measuring the effects of non-identical data
    distribution for federated visual classification (arXiv 1909.06335).
  """
  n, batch_size, seed = _check(arrays, batch_size, seed)
  alpha = check_positive('alpha', alpha)
  classes = _labels(arrays, labels)
  listed = samplers.check_labels(classes)
  if len(listed) != n:
    raise ValueError(
      f'labels must have one entry for each of the {n} examples, got '
      f'{describe(classes)}'
    )
  settings = {'alpha': alpha, 'batch_size': batch_size, 'seed': seed}
  draw = functools.partial(_dirichlet, listed, batch_size, alpha, seed)
  held = (Held(classes),)
  return _sampled('dirichlet', arrays, settings, held, draw, transform)


def from_shards(
  arrays: ArrayTree,
  shards: Sequence[np.ndarray],
  *,
  batch_size: int,
  seed: int = 0,
  transform: Transform | None = None,
) -> Resident:
  """Give replica i batches of the examples in the rows `shards[i]`.

  Args:
    arrays: a tree of arrays `[n, ...]`, which are placed on every device. Do
      not write to them during a run.
    shards: N arrays of rows, int[n_i], of any lengths. They may overlap.
    batch_size: examples per replica and step, >= 1.
    seed: seed of the shuffles, in 0 .. 2^32 - 1. Default: 0.
    transform: `(key, batch) -> batch`, applied on the device, see `shared`.
      Default: none.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if an argument is out of its range. `Trainer.run` raises it if
      the number of shards is not N.

  Example:
    >>> import numpy as np
    >>> shards = [np.arange(40), np.arange(40, 100)]
    >>> from_shards({'x': np.zeros((100, 3))}, shards, batch_size=4)
    from_shards(100 examples, batch_size=4, seed=0)
  """
  n, batch_size, seed = _check(arrays, batch_size, seed)
  sampler = samplers.from_shards(n, shards, batch_size, seed=seed)
  settings = {'batch_size': batch_size, 'seed': seed}
  # Compared by the identities of the rows, because a caller may write the list
  # again at each call. An array is one object, because its rows are new ones.
  rows = [shards] if isinstance(shards, np.ndarray) else shards
  held = tuple(map(Held, rows))
  return _sampled(
    'from_shards', arrays, settings, held, lambda n: sampler, transform
  )


def drawn(arrays: ArrayTree, batch_fn: BatchFn) -> Resident:
  """Give every replica the batches that a function makes on the device.

  Args:
    arrays: any tree of arrays, which are placed on every device; `()` if
      `batch_fn` needs none.
    batch_fn: `(data, step, replica, key) -> batch` of one replica, where `data`
      has the structure of `arrays`, `step` and `replica` are int32 scalars, and
      `key` differs for each step and replica. Pass the same function each time,
      because each new one is compiled.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if `batch_fn` is not a function of four arguments.

  Example:
    >>> import jax
    >>> drawn((), lambda data, step, replica, key: jax.random.normal(key, (4,)))
    drawn()
  """
  check_signature(BATCH, batch_fn)
  recipe = Recipe('drawn', None, (), (Held(batch_fn),), lambda n: batch_fn)
  return Resident(arrays, recipe)


def stream(iterator: Iterator[Any], *, global_batch: bool = False) -> Stream:
  """Give the replicas the batches of an iterator.

  `Trainer.run(state, pr.stream(iterator), n)` takes the next n batches. Keep
  the iterator, and write `pr.stream(iterator)` as often as needed.

  Args:
    iterator: iterator over batches, trees of host arrays `[N, batch, ...]`. If
      a loader ends after an epoch, pass a generator that starts it again.
    global_batch: whether leaves are `[N * batch, ...]`, as most loaders return
      them; replica 0 takes the first `batch` examples. Default: False.

  Returns:
    The data for `Trainer.run`.

  Raises:
    ValueError: if `iterator` is not an iterator. `Trainer.run` raises it if the
      iterator ends, or a batch has other shapes. In a run of more than 64
      steps, the state passed may then be used up.

  Example:
    >>> import itertools, numpy as np, prsgd_jax as pr
    >>> batches = itertools.repeat({'x': np.zeros((8, 16, 3))})
    >>> pr.stream(batches)
    stream(a repeat, global_batch=False)
  """
  if not isinstance(iterator, Iterator):
    raise ValueError(
      f'stream expects an iterator over batches, got {describe(iterator)}; '
      'make one by iter(...), once, before the loop'
    )
  return Stream(iterator, check_bool('global_batch', global_batch))


def check_resident(who: str, data: Any) -> Resident:
  """Return `data` if they are data that stay on the devices.

  Args:
    who: name of the caller, for the message.
    data: should be a `Resident`.

  Raises:
    ValueError: if `data` is something else, such as bare arrays.
  """
  if not isinstance(data, Resident):
    raise ValueError(
      f'{who} expects data such as pr.shared(arrays, batch_size=16), got '
      f'{describe(data)}'
    )
  return data


def _check(
  arrays: ArrayTree, batch_size: int, seed: int
) -> tuple[int, int, int]:
  """Check arguments and return (number of examples, batch size, seed)."""
  batch_size = check_positive_int('batch_size', batch_size)
  return _num_examples(arrays), batch_size, check_seed('seed', seed)


def _num_examples(arrays: ArrayTree) -> int:
  leaves = jax.tree.leaves(arrays)
  sizes = {np.shape(x)[0] if is_array(x) and np.shape(x) else 0 for x in leaves}
  if len(sizes) != 1 or 0 in sizes:
    raise ValueError(
      'data must be a tree of arrays of one length >= 1, such as '
      f"{{'image': ..., 'label': ...}}, got {describe(arrays)}"
    )
  return sizes.pop()


def _labels(arrays: ArrayTree, labels: Any) -> Any:
  if not isinstance(labels, str):
    return labels
  names = list(arrays) if isinstance(arrays, Mapping) else []
  if labels not in names:
    raise ValueError(
      f'labels={labels!r} is no array of the data, which has {names}; give its '
      'name, or int[n]'
    )
  return arrays[labels]


def _sampled(
  kind: str,
  arrays: ArrayTree,
  settings: Mapping[str, Hashable],
  held: tuple[Held, ...],
  sampler: Callable[[int], Sampler],
  transform: Transform | None,
) -> Resident:
  """Return data whose rows a sampler of N replicas chooses."""
  if transform is not None:
    check_signature('transform(key, batch)', transform)

  def make(num_replicas: int) -> BatchFn:
    found = sampler(num_replicas)
    return gathering.gather(found, num_replicas, transform)

  n = _num_examples(arrays)
  held = (*held, Held(transform))
  return Resident(arrays, Recipe(kind, n, tuple(settings.items()), held, make))


def _shared(n: int, batch_size: int, seed: int, num_replicas: int) -> Sampler:
  return samplers.shared(n, num_replicas, batch_size, seed=seed)


def _sharded(n: int, batch_size: int, seed: int, num_replicas: int) -> Sampler:
  return samplers.sharded(n, num_replicas, batch_size, seed=seed)


def _dirichlet(
  labels: np.ndarray,
  batch_size: int,
  alpha: float,
  seed: int,
  num_replicas: int,
) -> Sampler:
  return samplers.dirichlet(
    labels, num_replicas, batch_size, alpha=alpha, seed=seed
  )
