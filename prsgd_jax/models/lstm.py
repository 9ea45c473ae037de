"""A small recurrent classifier."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array


class LSTMClassifier(nn.Module):
  """One LSTM layer over the rows of an image, and a linear readout.

  The input is a sequence [batch, length, features], or an image. Each row of an
  image is one element of the sequence; its pixels and channels are the
  features.

  Reference:
    Hochreiter, Schmidhuber 1997, Long short-term memory.
  """

  num_classes: int
  hidden: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Map [batch, length, ...] to float32 logits [batch, num_classes]."""
    del train
    x = x.reshape((*x.shape[:2], -1)).astype(self.dtype)
    cell = nn.OptimizedLSTMCell(self.hidden, dtype=self.dtype)
    states = jnp.asarray(nn.RNN(cell)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(states[:, -1])
    return x.astype(jnp.float32)
