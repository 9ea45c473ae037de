"""CODECS: compressors with memory between messages, such as error feedback."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prsgd_jax.base import ArrayTree
from prsgd_jax.checks import check_number, check_positive_int
from prsgd_jax.mixing import chunks
from prsgd_jax.mixing.codecs import Compressor, check_compressor


class Codec(NamedTuple):
  """Encoding of one replica's value, a list of float32 or wider arrays.

  Attributes:
    compressor: the compressor, which encodes at the sender and decodes at each
      receiver.
    start: `value -> memory`, before the first message.
    prepare: `(value, memory) -> sent`, the value to encode.
    finish: `(sent, own, mixed, memory) -> (mixed, own, memory)`. `own` is the
      value that the receivers decode from this replica's codes. `mixed` is the
      received sum_j W_ij own_j.
    one_matrix: whether the memory is valid only for one constant W.
    weighted: whether replicas may have a register `weight`.
    resize: `memory -> memory`, when the number of replicas changes. The memory
      is already averaged over the replicas. Default: it stays so, which keeps
      the mean of the errors of `feedback`.
  """

  compressor: Compressor
  start: Callable[[ArrayTree], ArrayTree]
  prepare: Callable[[ArrayTree, ArrayTree], ArrayTree]
  finish: Callable[..., tuple[ArrayTree, ArrayTree, ArrayTree]]
  one_matrix: bool = False
  weighted: bool = True
  resize: Callable[[ArrayTree], ArrayTree] = lambda memory: memory


def as_codec(given: Any) -> Codec:
  """Return a codec; a compressor becomes a codec without memory.

  Raises:
    ValueError: if the argument is neither a codec nor a compressor.
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
  """Return the codec that adds the error of each message to the next one.

    sends Q(v + decay e);  e <- v + decay e - Q(v + decay e),  e = 0 initially

  Args:
    compressor: Q, a contraction such as `top_k` or `signs`.
    decay: fraction of the error that is kept, in [0, 1]. Default: 1.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> codec = pr.codecs.feedback(pr.codecs.top_k(0.1), decay=0.95)
    >>> algorithm = pr.diloco(optax.adamw(1e-3), period=30,
    ...                       average=pr.stages.average_differences(codec))

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
  """Return the codec that sends the compressed change since the last message.

    sends q_i = Q(v_i - v'_i);  v'_i <- v'_i + q_i
    all receive sum_j W_ij v'_j

  v' is the value of v that the receivers know, 0 initially. Each replica stores
  v'_i and sum_j W_ij v'_j. The sum is correct only for a constant W without
  weights, so `sync` rejects any other.

  Args:
    compressor: Q, a contraction such as `top_k`.

  Raises:
    ValueError: if `compressor` is not a compressor.

  Example:
    >>> import prsgd_jax as pr
    >>> codec = pr.codecs.difference(pr.codecs.top_k(0.1))
    >>> stage = pr.sync(pr.graphs.ring(), 's', codec=codec,
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

  def resize(memory: ArrayTree) -> ArrayTree:
    # Because v' is then equal on all replicas, and the rows of W sum to 1.
    return {**memory, 'mixed': memory['known']}

  return Codec(
    compressor,
    start,
    prepare,
    finish,
    one_matrix=True,
    weighted=False,
    resize=resize,
  )


def among_senders(codec: Compressor | Codec) -> Codec:
  """Return the codec that averages each entry over the replicas that sent it.

    all receive sum_j W_ij q_j / sum_j W_ij [q_j != 0], or 0 without a sender

  An entry that few replicas send is averaged over those few, so that the other
  replicas do not shrink it. Messages do not grow, because each receiver counts
  the senders in the codes that it decodes.

  Args:
    codec: a sparsifier such as `top_k(0.1)`, or a codec with memory around one.
      A sent value of exactly 0 counts as not sent.

  Raises:
    ValueError: if `codec` is neither a compressor nor a codec.

  Example:
    >>> import prsgd_jax as pr
    >>> feedback = pr.codecs.feedback(pr.codecs.top_k(0.1), decay=0.95)
    >>> codec = pr.codecs.among_senders(feedback)

  Reference:
    The authors' code of SparseLoCo and DeMo (arXiv 2508.15706, 2411.19870),
    which averages the values scattered to one position. The papers average over
    all replicas.
  """
  inner = as_codec(codec)

  def decode(codes: ArrayTree, shapes: ArrayTree) -> ArrayTree:
    values = inner.compressor.decode(codes, shapes)
    sent = jax.tree.map(lambda x: (x != 0).astype(x.dtype), values)
    return {'values': values, 'sent': sent}

  def finish(
    sent: ArrayTree, own: ArrayTree, mixed: ArrayTree, memory: ArrayTree
  ) -> tuple[ArrayTree, ArrayTree, ArrayTree]:
    shared = jax.tree.map(
      lambda x, w: jnp.where(w > 0, x / jnp.where(w > 0, w, 1), x),
      mixed['values'],
      mixed['sent'],
    )
    return inner.finish(sent, own['values'], shared, memory)

  counted = inner.compressor._replace(decode=decode)
  return inner._replace(compressor=counted, finish=finish, weighted=False)


def frequencies(codec: Compressor | Codec, *, chunk: int = 64) -> Codec:
  """Return the codec that encodes frequencies of chunks in place of values.

  Each leaf is cut into chunks of up to 64 x 64 entries, see `chunks`. The inner
  codec receives and remembers the discrete cosine transform of each chunk,
  stored in place of the chunk. The transform is orthonormal, so an error has
  equal norm in the frequencies and in the values.

  Args:
    codec: the codec of the frequencies: a compressor such as
      `chunked_top_k(32)` with equal chunks, or a codec with memory.
    chunk: the largest side of a chunk, an integer >= 1. Default: 64.

  Raises:
    ValueError: if an argument has the wrong type or is out of range.

  Example:
    >>> import prsgd_jax as pr
    >>> kept = pr.codecs.feedback(pr.codecs.chunked_top_k(32), decay=0.999)
    >>> codec = pr.codecs.frequencies(kept)

  Reference:
    Peng, Quesnelle, Kingma 2024, DeMo: decoupled momentum optimization (arXiv
    2411.19870), and the authors' code, bloc97/DeMo, demo.py, which
    supports only vectors and matrices.
  """
  inner = as_codec(codec)
  chunk = check_positive_int('chunk', chunk)

  def values(tree: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda x: chunks.from_frequencies(x, chunk), tree)

  def prepare(value: ArrayTree, memory: ArrayTree) -> ArrayTree:
    there = jax.tree.map(lambda x: chunks.to_frequencies(x, chunk), value)
    return inner.prepare(there, memory)

  def finish(*args: ArrayTree) -> tuple[ArrayTree, ArrayTree, ArrayTree]:
    mixed, own, memory = inner.finish(*args)
    return values(mixed), values(own), memory

  return inner._replace(prepare=prepare, finish=finish)


def _zeros(tree: ArrayTree) -> ArrayTree:
  return jax.tree.map(jnp.zeros_like, tree)
