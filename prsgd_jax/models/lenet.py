"""LeNet-5, a small convolutional network."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array
from prsgd_jax.models.convolution import Conv, max_pool


class LeNet5(nn.Module):
  """LeNet-5 with ReLU and max pooling, as it is commonly trained today.

  Convolutions are padded ('SAME'), so that 8x8 digits fit as well as 28x28
  ones.

  Reference:
    LeCun, Bottou, Bengio, Haffner 1998, Gradient-based learning applied to
    document recognition. The original has tanh-like units, trained subsampling
    and radial-basis outputs.
  """

  num_classes: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Map [batch, height, width, channels] to float32 [batch, classes]."""
    del train
    x = x.astype(self.dtype)
    for channels in (6, 16):
      x = max_pool(nn.relu(Conv(channels, (5, 5), dtype=self.dtype)(x)))
    x = x.reshape((x.shape[0], -1))
    for width in (120, 84):
      x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)
