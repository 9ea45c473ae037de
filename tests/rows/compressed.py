"""What sends codes. The oracles round with the draws of the library's keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing import codecs
from tests import harness, reference
from tests.rows.row import SGD, N, Row, T, multiples

# Where the leaves of the parameters are in the oracle's vector x = (w, b), in
# the order of the tree.
LAYERS = (slice(4, 6), slice(0, 4))
LEVELS, FRACTION, GAMMA = 4, 0.5, 0.4
RING = reference.ring_weights(N)
# Where the codes are drawn: the sync in `average_differences` inside the `at`
# of an algorithm with x0, and the one in `gossip_differences`.
OF_DIFFERENCES, OF_GOSSIP = (2, 0, 1), (1, 0, 1)


@functools.cache
def draws(path, draw):
  """For each leaf `draw(key, n)` of all steps and replicas, [T, N, ...]."""
  with jax.enable_x64(True):
    keys, _ = harness.stage_keys(T, path, N)

    def of_leaf(number, n):
      def one(key):
        return draw(jax.random.fold_in(key, number), n)

      return np.asarray(jax.vmap(jax.vmap(one))(keys))

    sizes = [layer.stop - layer.start for layer in LAYERS]
    return [of_leaf(number, n) for number, n in enumerate(sizes)]


def uniform(key, n):
  return jax.random.uniform(key, (n,), jnp.float64)


def places(key, n):
  seed = jax.random.bits(key, (2,), jnp.uint32)
  return codecs.drawn_places(seed, n, n // 2)


def _layerwise(quantize):
  """`compress(t, i, v)` from `quantize(t, i, number of the layer, part)`."""

  def compress(t, i, v):
    part = functools.partial(quantize, t, i)
    return reference.by_layer(part, LAYERS, v)

  return compress


def levels_at(path):
  return _layerwise(
    lambda t, i, layer, v: reference.stochastic_levels(
      v, levels=LEVELS, uniform=draws(path, uniform)[layer][t - 1, i]
    )
  )


def ternary_at(path):
  return _layerwise(
    lambda t, i, layer, v: reference.ternary(
      v, uniform=draws(path, uniform)[layer][t - 1, i]
    )
  )


def random_half_at(path):
  return _layerwise(
    lambda t, i, layer, v: reference.random_k(
      v, places=draws(path, places)[layer][t - 1, i]
    )
  )


top_half = _layerwise(lambda t, i, layer, v: reference.top_k(v, k=len(v) // 2))
signs = _layerwise(lambda t, i, layer, v: reference.signs(v))


small_floats = _layerwise(
  lambda t, i, layer, v: reference.small_float(
    v, exponent_bits=3, mantissa_bits=0
  )
)


def whole(t, i, v):
  return v


def _error_feedback(compressor, compress, **row):
  return Row(
    lambda: pr.error_feedback_sgd(SGD, compressor=compressor),
    functools.partial(reference.error_feedback_sgd, compress=compress),
    'S',
    full_sync=multiples(1),
    keeps_mean=False,  # the errors wait
    **row,
  )


def _choco(compressor, compress, gamma=GAMMA, mixing=None, period=1, **row):
  return Row(
    lambda: pr.choco_sgd(
      SGD,
      mixing=pr.graphs.ring() if mixing is None else pr.mixing.dense(mixing),
      compressor=compressor,
      consensus_step_size=gamma,
      period=period,
    ),
    functools.partial(
      reference.choco_sgd,
      weights=RING if mixing is None else mixing,
      compress=compress,
      consensus_step_size=gamma,
      period=period,
    ),
    'C',
    **row,
  )


TABLE = {
  'qsgd': Row(
    lambda: pr.qsgd(SGD, levels=LEVELS),
    functools.partial(reference.compressed_sgd, compress=levels_at((1,))),
    'S',
    full_sync=multiples(1),
    keeps_mean=False,  # right in expectation
  ),
  'terngrad': Row(
    lambda: pr.terngrad(SGD),
    functools.partial(reference.compressed_sgd, compress=ternary_at((1,))),
    'S',
    full_sync=multiples(1),
    keeps_mean=False,  # right in expectation
  ),
  'sign_sgd': Row(
    lambda: pr.sign_sgd(SGD),
    reference.sign_sgd,
    'S',
    full_sync=multiples(1),
    keeps_mean=False,
  ),
  'error_feedback_sgd': _error_feedback(pr.codecs.top_k(FRACTION), top_half),
  'error_feedback_sgd_signs': _error_feedback(
    pr.codecs.signs(), signs, every_layout=False
  ),
  'error_feedback_sgd_random': _error_feedback(
    pr.codecs.random_k(FRACTION), random_half_at((3,)), every_layout=False
  ),
  'fedpaq': Row(
    lambda: pr.fedpaq(
      SGD, period=4, compressor=pr.codecs.stochastic_levels(LEVELS)
    ),
    functools.partial(
      reference.fedpaq, period=4, compress=levels_at(OF_DIFFERENCES)
    ),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # right in expectation
  ),
  'fedpaq_e3m0': Row(
    lambda: pr.fedpaq(SGD, period=4, compressor=pr.codecs.e3m0()),
    functools.partial(reference.fedpaq, period=4, compress=small_floats),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # what is rounded off is lost
    every_layout=False,
  ),
  'qsparse_local_sgd': Row(
    lambda: pr.qsparse_local_sgd(
      SGD, period=4, compressor=pr.codecs.top_k(FRACTION)
    ),
    functools.partial(reference.qsparse_local_sgd, period=4, compress=top_half),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # the errors wait
  ),
  # Gossip of differences keeps the mean with every compressor.
  'choco_sgd': _choco(pr.codecs.top_k(FRACTION), top_half),
  'choco_sgd_levels': _choco(
    pr.codecs.stochastic_levels(LEVELS),
    levels_at(OF_GOSSIP),
    every_layout=False,
  ),
  'choco_sgd_random': _choco(
    pr.codecs.random_k(FRACTION), random_half_at(OF_GOSSIP), every_layout=False
  ),
  'choco_sgd_uncompressed': _choco(
    pr.codecs.uncompressed(), whole, 1.0, every_layout=False
  ),
  'choco_sgd_local': _choco(
    pr.codecs.top_k(FRACTION), top_half, period=3, every_layout=False
  ),
  'diloco_top_k': Row(
    lambda: pr.diloco(
      SGD,
      period=4,
      average=pr.stages.average_differences(
        pr.codecs.feedback(pr.codecs.top_k(FRACTION), 0.9)
      ),
    ),
    functools.partial(
      reference.coded_diloco,
      period=4,
      compress=top_half,
      decay=0.9,
      outer_learning_rate=0.7,
      outer_momentum=0.9,
    ),
    'C',
    full_sync=multiples(4),
    keeps_mean=False,  # the errors wait
    every_layout=False,
  ),
}
