"""A small decoder-only transformer."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array


class Transformer(nn.Module):
  """Predict the next token at every position of a sequence.

  It has token and position embeddings, and pre-norm residual blocks of causal
  attention and of a dense layer four times as wide with GELU. A normalization
  and a separate readout follow. It has no dropout. With width w, length l,
  vocabulary v and b blocks it has

    v w + l w + b (12 w^2 + 13 w) + 2 w + w v + v

  parameters. The initial readout is small, so that the first prediction is
  close to uniform.

  Attributes:
    vocabulary_size: the number of tokens; tokens are 0 .. vocabulary_size - 1.
    max_length: the longest sequence that has position embeddings.
    width: the width of the residual stream, a multiple of `num_heads`.

  Reference:
    Vaswani et al. 2017, Attention is all you need (arXiv 1706.03762), the
    decoder only; Radford et al. 2019, Language models are unsupervised
    multitask learners, for pre-norm and learned positions.
  """

  vocabulary_size: int
  max_length: int = 64
  width: int = 64
  num_blocks: int = 2
  num_heads: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Map int[batch, length] to float32 logits [batch, length, vocabulary].

    Raises:
      ValueError: if the sequences are longer than `max_length`.
    """
    del train
    length = x.shape[1]
    if length > self.max_length:
      raise ValueError(
        f'sequences must be at most max_length={self.max_length} long, got '
        f'{length}'
      )
    mask = nn.make_causal_mask(x)
    positions = self.param(
      'positions',
      nn.initializers.normal(0.02),
      (self.max_length, self.width),
    )
    embed = nn.Embed(self.vocabulary_size, self.width, dtype=self.dtype)
    x = embed(x.astype(jnp.int32)) + positions[:length].astype(self.dtype)
    for _ in range(self.num_blocks):
      attention = nn.MultiHeadDotProductAttention(
        self.num_heads, dtype=self.dtype
      )
      x = x + attention(nn.LayerNorm(dtype=self.dtype)(x), mask=mask)
      y = nn.LayerNorm(dtype=self.dtype)(x)
      y = nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype)(y))
      x = x + nn.Dense(self.width, dtype=self.dtype)(y)
    x = nn.Dense(
      self.vocabulary_size,
      dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.02),
    )(nn.LayerNorm(dtype=self.dtype)(x))
    return x.astype(jnp.float32)
