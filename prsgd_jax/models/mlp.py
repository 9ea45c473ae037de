"""A multilayer perceptron."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array


class MLP(nn.Module):
  """Dense layers with ReLU between them, on flattened inputs."""

  num_classes: int
  hidden: Sequence[int] = (128,)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Map [batch, ...] to float32 logits [batch, num_classes]."""
    del train
    x = x.reshape((x.shape[0], -1)).astype(self.dtype)
    for width in self.hidden:
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
