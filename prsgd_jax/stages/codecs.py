"""CODECS: compressors that remember what they left out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prsgd_jax.base import ArrayTree
from prsgd_jax.checks import check_number
from prsgd_jax.compression import Compressor, check_compressor


class Codec(NamedTuple):
  """How a value travels, seen by one replica, on lists of wide floats.

  Attributes:
    compressor: encodes at the sender, decodes at each receiver.
    start: `value -> memory`, before the first message.
    prepare: `(value, memory) -> what is encoded`.
    finish: `(sent, own, mixed, memory) -> (mixed, own, memory)`. `sent` is what
      was encoded, `own` is what the others decode of it, `mixed` is what
      arrived: sum_j W_ij own_j.
    one_matrix: whether the memory is only right for one constant W.
  """

  compressor: Compressor
  start: Callable[[ArrayTree], ArrayTree]
  prepare: Callable[[ArrayTree, ArrayTree], ArrayTree]
  finish: Callable[..., tuple[ArrayTree, ArrayTree, ArrayTree]]
  one_matrix: bool = False


def as_codec(given: Any) -> Codec:
  """Returns a codec; a compressor becomes one without memory.

  Raises:
    ValueError: if it is neither.
  """
  if isinstance(given, Codec):
    return given
  check_compressor(given)
  return Codec(
    given,
    lambda value: (),
    lambda value, memory: value,
    lambda sent, own, mixed, memory: (mixed, own, memory),
  )


def feedback(compressor: Compressor, decay: float = 1.0) -> Codec:
  """Error feedback: what a message left out is added to the next one.

    sends Q(v + decay e);  e <- v + decay e - Q(v + decay e),  e = 0 at first

  Args:
    compressor: Q, a contraction such as `top_k` or `signs`.
    decay: how much of the error is kept, in [0, 1]; 1 by default.

  Raises:
    ValueError: if an argument is not what it should be.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> codec = pr.feedback(pr.top_k(0.1), decay=0.95)
    >>> algorithm = pr.diloco(optax.adamw(1e-3), period=30,
    ...                       average=pr.average_differences(codec))

  Reference:
    Karimireddy, Rebjock, Stich, Jaggi 2019, Error feedback fixes signSGD and
    other gradient compression schemes (arXiv 1901.09847), Algorithm 1, whose
    decay is 1.
  """
  check_compressor(compressor)
  decay = check_number('decay', decay, lambda x: 0 <= x <= 1, 'in [0, 1]')

  def prepare(value: ArrayTree, errors: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda v, e: v + decay * e, value, errors)

  def finish(
    sent: ArrayTree, own: ArrayTree, mixed: ArrayTree, errors: ArrayTree
  ) -> tuple[ArrayTree, ArrayTree, ArrayTree]:
    del errors
    return mixed, own, jax.tree.map(jnp.subtract, sent, own)

  return Codec(compressor, _zeros, prepare, finish)


def difference(compressor: Compressor) -> Codec:
  """Sends the change of a value since the last message, compressed.

    sends q_i = Q(v_i - v'_i);  v'_i <- v'_i + q_i
    all receive sum_j W_ij v'_j, where v' is what the others know of v, 0 first

  Each replica keeps v'_i and sum_j W_ij v'_j. The sum is right for a constant W
  only, and without weights; `sync` refuses others.

  Args:
    compressor: Q, a contraction such as `top_k`.

  Raises:
    ValueError: if `compressor` is not one.

  Example:
    >>> import prsgd_jax as pr
    >>> stage = pr.sync(pr.ring(), 's', codec=pr.difference(pr.top_k(0.1)),
    ...                 own='known')

  Reference:
    Koloskova, Stich, Jaggi 2019, Decentralized stochastic optimization and
    gossip algorithms with compressed communication (arXiv 1902.00340),
    Algorithm 2 in its memory-efficient form.
  """
  check_compressor(compressor)

  def start(value: ArrayTree) -> ArrayTree:
    return {'known': _zeros(value), 'mixed': _zeros(value)}

  def prepare(value: ArrayTree, memory: ArrayTree) -> ArrayTree:
    return jax.tree.map(jnp.subtract, value, memory['known'])

  def finish(
    sent: ArrayTree, own: ArrayTree, mixed: ArrayTree, memory: ArrayTree
  ) -> tuple[ArrayTree, ArrayTree, ArrayTree]:
    del sent
    memory = jax.tree.map(jnp.add, memory, {'known': own, 'mixed': mixed})
    return memory['mixed'], memory['known'], memory

  return Codec(compressor, start, prepare, finish, one_matrix=True)


def _zeros(tree: ArrayTree) -> ArrayTree:
  return jax.tree.map(jnp.zeros_like, tree)
