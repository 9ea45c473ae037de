"""The residual networks of the CIFAR experiments."""

import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array


class ResNet20(nn.Module):
  """ResNet-20 for 32x32 images: 0.27 million parameters, batch normalised.

  A 3x3 convolution, three stages of three blocks of two 3x3 convolutions with
  16, 32 and 64 channels, global average pooling. Shortcuts have no parameters:
  where the shape changes they take every second pixel and add zero channels
  (option A).

  Reference:
    He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition
    (arXiv 1512.03385), section 4.2.
  """

  num_classes: int
  blocks_per_stage: int = 3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """[batch, height, width, channels] -> float32 logits [batch, classes]."""
    conv = functools.partial(
      nn.Conv,
      kernel_size=(3, 3),
      padding=1,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.he_normal(),
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      dtype=self.dtype,
    )
    x = nn.relu(norm()(conv(16)(x.astype(self.dtype))))
    for stage, channels in enumerate((16, 32, 64)):
      for block in range(self.blocks_per_stage):
        stride = 2 if stage > 0 and block == 0 else 1
        y = nn.relu(norm()(conv(channels, strides=stride)(x)))
        y = norm()(conv(channels)(y))
        x = nn.relu(y + _shortcut(x, channels, stride))
    x = x.mean(axis=(1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.float32)


def _shortcut(x: Array, channels: int, stride: int) -> Array:
  extra = channels - x.shape[-1]
  sides = ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))
  return jnp.pad(x[:, ::stride, ::stride], sides)
