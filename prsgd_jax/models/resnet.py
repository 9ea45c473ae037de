"""The residual networks of the CIFAR experiments."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax.base import Array
from prsgd_jax.models.batch_norm import BatchNorm
from prsgd_jax.tracing.barriers import materialize


class ResNet20(nn.Module):
  """ResNet-20 for 32x32 images: 0.27 million parameters, batch normalized.

  It has a 3x3 convolution, three stages of three blocks of two 3x3 convolutions
  with 16, 32 and 64 channels, and global average pooling. Shortcuts have no
  parameters. If the shape changes, they take every second pixel and add zero
  channels (option A).

  Reference:
    He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition
    (arXiv 1512.03385), section 4.2.
  """

  num_classes: int
  blocks_per_stage: int = 3
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Map [batch, height, width, channels] to float32 [batch, classes]."""
    conv, norm = _layers(self.dtype, train)
    x = nn.relu(norm()(conv(16)(x.astype(self.dtype))))
    for channels, stride in _blocks((16, 32, 64), self.blocks_per_stage):
      y = nn.relu(norm()(conv(channels, strides=stride)(x)))
      y = norm()(conv(channels)(y))
      x = nn.relu(y + _shortcut(x, channels, stride))
    return _readout(x, self.num_classes, self.dtype)


class ResNet18(nn.Module):
  """ResNet-18 for 32x32 images: 11.17 million parameters for ten classes.

  It is the ImageNet network with the usual stem for small images, a 3x3
  convolution without max pooling. Four stages follow, of two blocks of two 3x3
  convolutions with 64, 128, 256 and 512 channels, and global average pooling.
  If the shape changes, the shortcut is a normalized 1x1 convolution (option B).

  Reference:
    He, Zhang, Ren, Sun 2016, Deep residual learning for image recognition
    (arXiv 1512.03385), table 1.
  """

  num_classes: int
  channels: Sequence[int] = (64, 128, 256, 512)
  blocks_per_stage: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    """Map [batch, height, width, channels] to float32 [batch, classes]."""
    conv, norm = _layers(self.dtype, train)
    x = nn.relu(norm()(conv(self.channels[0])(x.astype(self.dtype))))
    for channels, stride in _blocks(self.channels, self.blocks_per_stage):
      y = nn.relu(norm()(conv(channels, strides=stride)(x)))
      y = norm()(conv(channels)(y))
      if x.shape != y.shape:
        x = norm()(conv(channels, (1, 1), strides=stride)(x))
      x = nn.relu(x + y)
    return _readout(x, self.num_classes, self.dtype)


def _layers(dtype: Any, train: bool) -> tuple[Any, Any]:
  """Return factories of bias-free convolutions, by default 3x3, and norms."""

  def conv(
    channels: int, kernel_size: tuple[int, int] = (3, 3), **options: Any
  ) -> Callable[[Array], Array]:
    module = nn.Conv(
      channels,
      kernel_size,
      padding=kernel_size[0] // 2,
      use_bias=False,
      dtype=dtype,
      kernel_init=nn.initializers.he_normal(),
      **options,
    )
    # Because a convolution copies its input into other orders of axes, once for
    # the gradient of the kernel. XLA would repeat all elementwise operations
    # that lead to the input for each copy, pixel by pixel out of order.
    return lambda x: module(materialize(x))

  norm = functools.partial(
    BatchNorm, use_running_average=not train, momentum=0.9, dtype=dtype
  )
  return conv, norm


def _blocks(
  channels: Sequence[int], blocks_per_stage: int
) -> list[tuple[int, int]]:
  """Return (channels, stride) of each block; later stages begin with 2."""
  return [
    (width, 2 if stage > 0 and block == 0 else 1)
    for stage, width in enumerate(channels)
    for block in range(blocks_per_stage)
  ]


def _shortcut(x: Array, channels: int, stride: int) -> Array:
  extra = channels - x.shape[-1]
  sides = ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2))
  return jnp.pad(x[:, ::stride, ::stride], sides)


def _readout(x: Array, num_classes: int, dtype: Any) -> Array:
  """Return float32 logits by global average pooling and a dense layer."""
  x = nn.Dense(num_classes, dtype=dtype)(x.mean(axis=(1, 2)))
  return x.astype(jnp.float32)
