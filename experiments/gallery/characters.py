"""A small transformer on the characters of Shakespeare's plays."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import models
from prsgd_jax.data.datasets import texts
from prsgd_jax.models.language_modeling import language_model

WIDTH, LENGTH = 32, 32
NUM_OBSERVED = 512
# The loss of equal probabilities. A larger loss, or none, counts as this one,
# because a mean needs finite numbers.
GUESSING = float(np.log(len(texts.VOCABULARY)))


class Problem(NamedTuple):
  """The functions of a problem.

  Attributes:
    loss_fn: the loss of one replica, on sequences that begin anywhere in the
      training text.
    start: key -> the parameters of the model.
    observe: replicas -> loss of their average on the validation text.
  """

  loss_fn: Callable[..., jax.Array]
  start: Callable[[jax.Array], Any]
  observe: Callable[[Any], jax.Array]


def problem(batch_size: int, num_batches: int = 1) -> Problem:
  """Return the problem of predicting the next character.

  Args:
    batch_size: sequences per replica in a batch.
    num_batches: batches per replica and step. Their gradients are averaged one
      batch at a time, so that memory does not depend on their number.
  """
  # One head, because XLA for CPUs rejects arrays of a higher rank.
  network = models.Transformer(
    len(texts.VOCABULARY), LENGTH, width=WIDTH, num_blocks=1, num_heads=1
  )
  task = language_model(network)
  text = jnp.asarray(tokens('train'))
  seen = jnp.asarray(texts.cut(tokens('validation'), LENGTH)[:NUM_OBSERVED])

  def of_batch(params: Any, key: jax.Array) -> jax.Array:
    first = jax.random.randint(key, (batch_size, 1), 0, len(text) - LENGTH)
    batch = {'text': text[first + jnp.arange(LENGTH + 1)]}
    return jnp.asarray(task.loss_fn(params, {}, batch, key)[0])

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    keys = jax.random.split(key, num_batches)
    if num_batches == 1:
      return of_batch(params, keys[0])
    one = jax.checkpoint(functools.partial(of_batch, params))
    return jax.lax.map(one, keys).mean()

  def start(key: jax.Array) -> Any:
    return task.init(key, {'text': seen[:1]})[0]

  def observe(params: Any) -> jax.Array:
    average = jax.tree.map(lambda x: x.mean(axis=0), params)
    return task.eval_fn(average, {}, {'text': seen})['loss'].mean()

  return Problem(loss_fn, start, observe)


@functools.cache
def tokens(split: str) -> np.ndarray:
  """Return a split of the text as indices into the vocabulary, uint8[n]."""
  codes = texts.shakespeare_splits()[split]['text'][0]
  return texts.encode(codes.tobytes().decode('ascii'))


def unigram_loss() -> float:
  """Return the loss on the validation text of the frequencies in training.

  A character that training lacks counts as seen once.
  """
  size = len(texts.VOCABULARY)
  counts = np.bincount(tokens('train'), minlength=size).clip(min=1)
  return float(-np.log(counts / counts.sum())[tokens('validation')].mean())
