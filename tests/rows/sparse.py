"""What sends few entries, few frequencies or few directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import harness, reference
from tests.rows.compressed import LAYERS, _layerwise
from tests.rows.row import SGD, N, Row, T, multiples

# The shapes of the leaves, in the order of LAYERS.
SHAPES = ((1, 2), (2, 2))
DECAY, ALPHA = 0.8, 0.7


def largest(k, values=None):
  return _layerwise(
    lambda t, i, layer, v: reference.chunked_top_k(
      v, shape=SHAPES[layer], k=k, chunk=64, values=values
    )
  )


@functools.cache
def shared_halves(path):
  """The entries of x that all replicas draw at each step."""
  with jax.enable_x64(True):
    _, shared = harness.stage_keys(T, path, N)
    drawn = []
    for key in shared:
      here = []
      for layer, own in zip(LAYERS, jax.random.split(key, len(LAYERS))):
        places = np.arange(layer.start, layer.stop)
        bits = np.asarray(jax.random.bits(own, (len(places),), jnp.uint32))
        here += places[np.argsort(-bits.astype(int))[: len(bits) // 2]].tolist()
      drawn.append(here)
  return drawn


def first_factor(rank):
  with jax.enable_x64(True):
    key = jax.random.key(0, impl='threefry2x32')
    return np.asarray(jax.random.normal(key, (2, rank), jnp.float64))


def _sparse_loco(k, values=None, of_values=None, senders_only=False, **row):
  return Row(
    lambda: pr.sparse_loco(
      SGD,
      period=4,
      compressor=pr.codecs.chunked_top_k(k, values=values),
      decay=DECAY,
      outer_learning_rate=ALPHA,
      senders_only=senders_only,
    ),
    functools.partial(
      reference.sparse_loco,
      period=4,
      compress=largest(k, of_values),
      decay=DECAY,
      outer_learning_rate=ALPHA,
      senders_only=senders_only,
    ),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # the errors wait
    **row,
  )


def _demo(senders_only, **row):
  return Row(
    lambda: pr.demo(SGD, num_kept=1, decay=DECAY, senders_only=senders_only),
    functools.partial(
      reference.demo,
      matrices=tuple(zip(LAYERS, SHAPES)),
      k=1,
      decay=DECAY,
      senders_only=senders_only,
    ),
    'S',
    full_sync=multiples(1),
    keeps_mean=False,  # signs
    **row,
  )


TABLE = {
  'sparse_loco': _sparse_loco(1),
  'sparse_loco_senders': _sparse_loco(1, senders_only=True, every_layout=False),
  'sparse_loco_bins': _sparse_loco(
    3, pr.codecs.bin_means(), reference.bin_means, every_layout=False
  ),
  'demo': _demo(False),
  'demo_senders': _demo(True, every_layout=False),
  'sparta': Row(
    lambda: pr.sparta(SGD, fraction=0.5),
    lambda problem, **rates: reference.sparta(
      problem, drawn=shared_halves((1, 0)), **rates
    ),
    'C',
  ),
  'power_sgd': Row(
    lambda: pr.power_sgd(SGD, rank=1),
    lambda problem, **rates: reference.power_sgd(
      problem, matrix=LAYERS[1], shape=SHAPES[1], start=first_factor(1), **rates
    ),
    'S',
    full_sync=multiples(1),
    keeps_mean=False,  # the errors wait
  ),
}
