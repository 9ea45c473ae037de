"""Batch normalization whose sums over examples are matrix products.

On CPU, XLA reduces the rows of a matrix slowly and multiplies matrices fast, so
a sum over rows is a product with a row of ones. The backward pass is written
out, because derivatives of the sums would be further passes over the batch.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from prsgd_jax.base import Array


class BatchNorm(nn.Module):
  """Batch normalization over all axes but the last, the channels.

  Parameters and statistics have the names, shapes and values of
  `flax.linen.BatchNorm`, so that one reads the checkpoints of the other. The
  variance of a batch is the mean of squared differences from its mean.

  Attributes:
    use_running_average: whether to normalize with the statistics kept, as in
      evaluation, and not with the statistics of the batch.
    momentum: share of the old statistics that is kept in an update.
      Default: 0.9.
    epsilon: added to the variance. Default: 1e-5.
    dtype: type of the result. Sums are at least float32.

  Example:
    >>> norm = BatchNorm(use_running_average=False)
    >>> x = jnp.array([[1.0], [3.0]])
    >>> y, _ = norm.apply(norm.init(jax.random.key(0), x), x,
    ...                   mutable=['batch_stats'])
    >>> y.round(2).tolist()
    [[-1.0], [1.0]]

  Reference:
    Ioffe, Szegedy 2015, Batch normalization (arXiv 1502.03167), algorithms 1
    and 2.
  """

  use_running_average: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Map [batch, ..., channels] to the same shape."""
    shape = (x.shape[-1],)
    kind = jnp.promote_types(jnp.float32, x.dtype)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    rows = x.reshape((-1, *shape)).astype(kind)
    if self.use_running_average:
      y = (rows - mean.value) * (scale * lax.rsqrt(var.value + self.epsilon))
      return (y + bias).reshape(x.shape).astype(self.dtype)
    y, batch_mean, batch_var = normalize(rows, scale, bias, self.epsilon)
    if not self.is_initializing():
      for kept, new in ((mean, batch_mean), (var, batch_var)):
        moved = self.momentum * kept.value + (1 - self.momentum) * new
        kept.value = moved.astype(kept.value.dtype)
    return y.reshape(x.shape).astype(self.dtype)


def normalize(
  x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
  """Normalize the columns of a matrix.

  Args:
    x: [rows, channels].
    scale, bias: [channels].
    epsilon: added to the variance.

  Returns:
    (y, mean, variance) with y = scale (x - mean) / sqrt(variance + epsilon) +
    bias. No gradient passes through the mean and the variance returned.

  Example:
    >>> y, mean, variance = normalize(
    ...     jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), epsilon=0.0)
    >>> y.tolist(), mean.item(), variance.item()
    ([[-1.0], [1.0]], 2.0, 1.0)
  """
  return _normalize(epsilon, x, scale, bias)


def _normalize_forward(
  epsilon: float, x: Array, scale: Array, bias: Array
) -> tuple[Any, Any]:
  rows = x.shape[0]
  mean = _sum(x) / rows
  centered = x - mean
  variance = _sum(centered * centered) / rows
  inverse = lax.rsqrt(variance + epsilon)
  y = centered * (scale * inverse) + bias
  return (y, mean, variance), (x, mean, inverse, scale, bias)


def _normalize_backward(
  epsilon: float, saved: Any, gradients: Any
) -> tuple[Array, Array, Array]:
  del epsilon
  x, mean, inverse, scale, bias = saved
  dy, _, _ = gradients
  rows = x.shape[0]
  # Computed again, because keeping it would cost more memory traffic.
  normal = (x - mean) * inverse
  d_bias = _sum(dy)
  d_scale = _sum(dy * normal)
  dx = (dy - (d_bias + normal * d_scale) / rows) * (scale * inverse)
  return dx, d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_normalize = jax.custom_vjp(
  lambda *args: _normalize_forward(*args)[0], nondiff_argnums=(0,)
)
_normalize.defvjp(_normalize_forward, _normalize_backward)


def _sum(x: Array) -> Array:
  """Sum over the rows."""
  return jnp.ones(x.shape[0], x.dtype) @ x
