"""ResNet-20 of all replicas at once, with their channels side by side.

Images are `[batch, height, width, N channels]`. One convolution with N feature
groups applies the weights of each replica to its channels. A `vmap` over
replicas lowers to such convolutions, too: in the forward pass, with the same
number of groups. The gradient of the weights differs. Here JAX transposes the
grouped convolution to one with N batch groups. Under `vmap`, it batches the
transposed convolution of one replica, which gives N feature groups again.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import optax

from prsgd_jax.base import Array
from prsgd_jax.models.batch_norm import normalize

EPSILON, MOMENTUM = 1e-5, 0.9


def loss(
  params: Mapping[str, Any],
  model_state: Mapping[str, Any],
  batch: Mapping[str, Array],
  dtype: Any,
) -> tuple[Array, tuple[Any, Array]]:
  """Return the sum of the replicas' losses, and their new statistics.

  Args:
    params: parameters of `models.ResNet20`, leaves [N, ...].
    model_state: its batch statistics, leaves [N, ...].
    batch: image [N, batch, height, width, channels] and label [N, batch].
    dtype: type of the computation.

  Returns:
    (sum, (model_state, losses [N])).
  """
  images, labels = batch['image'], batch['label']
  num_replicas, size = labels.shape
  x = jnp.moveaxis(images, 0, 3).reshape((size, *images.shape[2:4], -1))
  network = _Network(params, model_state['batch_stats'], num_replicas, dtype)
  logits = network(x.astype(dtype))
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  means = losses.mean(axis=1)
  return means.sum(), ({'batch_stats': network.statistics}, means)


class _Network:
  """One forward pass; it takes flax's parameters by their names, in order."""

  def __init__(self, params: Any, statistics: Any, n: int, dtype: Any):
    self._params, self._old, self._n, self._dtype = params, statistics, n, dtype
    self._convolutions = self._norms = 0
    self.statistics: dict[str, Any] = {}

  def __call__(self, x: Array) -> Array:
    """Map [batch, height, width, N channels] to logits [N, batch, classes]."""
    x = nn.relu(self._norm(self._convolve(x, 1)))
    blocks = (len(self._old) - 1) // 2
    per_stage = blocks // 3
    for block in range(blocks):
      stride = 2 if block and block % per_stage == 0 else 1
      y = nn.relu(self._norm(self._convolve(x, stride)))
      y = self._norm(self._convolve(y, 1))
      x = nn.relu(y + self._shortcut(x, y.shape[-1], stride))
    pooled = x.mean(axis=(1, 2)).reshape((x.shape[0], self._n, -1))
    dense = self._params['Dense_0']
    kernel = dense['kernel'].astype(self._dtype)
    logits = jnp.einsum('bnc,nck->nbk', pooled, kernel)
    logits = logits + dense['bias'].astype(self._dtype)[:, None]
    return logits.astype(jnp.float32)

  def _convolve(self, x: Array, stride: int) -> Array:
    kernel = self._params[f'Conv_{self._convolutions}']['kernel']
    self._convolutions += 1
    joined = jnp.moveaxis(kernel, 0, 3)  # [3, 3, in, N, out]
    joined = joined.reshape((*joined.shape[:3], -1)).astype(self._dtype)
    return lax.conv_general_dilated(
      x,
      joined,
      (stride, stride),
      ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=self._n,
    )

  def _norm(self, x: Array) -> Array:
    name = f'BatchNorm_{self._norms}'
    self._norms += 1
    own = self._params[name]
    rows = x.reshape((-1, x.shape[-1])).astype(jnp.float32)
    y, mean, variance = normalize(
      rows, own['scale'].reshape(-1), own['bias'].reshape(-1), EPSILON
    )
    old = self._old[name]
    self.statistics[name] = {
      key: MOMENTUM * old[key] + (1 - MOMENTUM) * new.reshape(old[key].shape)
      for key, new in (('mean', mean), ('var', variance))
    }
    return y.reshape(x.shape).astype(self._dtype)

  def _shortcut(self, x: Array, channels: int, stride: int) -> Array:
    """Take every second pixel, and add zero channels to each replica."""
    x = x[:, ::stride, ::stride]
    own = x.reshape((*x.shape[:3], self._n, -1))
    extra = channels // self._n - own.shape[-1]
    sides = (*((0, 0),) * 4, (extra // 2, extra - extra // 2))
    return jnp.pad(own, sides).reshape((*x.shape[:3], channels))


def gradients(
  params: Any, model_state: Any, batch: Any, dtype: Any
) -> tuple[Any, Any, Array]:
  """Return the replicas' gradients, new statistics and losses [N].

  The gradient of the sum is each replica's own, because the replicas share no
  weights.
  """
  (_, (model_state, losses)), grads = jax.value_and_grad(loss, has_aux=True)(
    params, model_state, batch, dtype
  )
  return grads, model_state, losses
