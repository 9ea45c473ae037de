"""What compressors promise: no bias, bounded variance, contraction."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np

from experiments.papers.target import Claim, verdict
from experiments.tools import styles
import prsgd_jax as pr

# Vectors and draws of each.
SIZE, NUM_DRAWS = 1000, 4000
LEVELS, FRACTIONS = (1, 4, 16, 64), (0.01, 0.1, 0.5)
# Of sqrt(sum of the squared z / n), which is 1 if nothing is biased.
UNBIASED, VARIANCE_TOLERANCE = 1.1, 0.02
ROUNDING = 1e-5


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Moments of the codes of vectors: of quantizers, and of what keeps some."""
  vectors = _vectors()
  quantizers = {
    **{f'QSGD, s = {s}': pr.codecs.stochastic_levels(s) for s in LEVELS},
    'TernGrad': pr.codecs.ternary(),
  }
  drawn = {
    name: {kind: _moments(q, v) for kind, v in vectors.items()}
    for name, q in quantizers.items()
  }
  for name, own in drawn.items():
    for kind, v in vectors.items():
      own[kind] |= _theory(name, v)
  kept = [
    {'name': name, 'fraction': f, 'kind': kind, **_moments(q(f), v)}
    for f in FRACTIONS
    for kind, v in vectors.items()
    for name, q in (
      ('top-k', pr.codecs.top_k),
      ('random-k', pr.codecs.random_k),
    )
  ]
  return drawn, kept


def _vectors() -> dict[str, jax.Array]:
  """Entries alike, of heavy tails, and but one that is not small."""
  rng = np.random.default_rng(0)
  alone = 0.01 * rng.normal(size=SIZE)
  alone[3] = 1.0
  kinds = {
    'Gaussian': rng.normal(size=SIZE),
    'Student t, 2 degrees': rng.standard_t(2, SIZE),
    'one large entry': alone,
  }
  return {kind: jnp.asarray(v, jnp.float32) for kind, v in kinds.items()}


def _moments(
  compressor: pr.codecs.Compressor, v: jax.Array
) -> dict[str, float]:
  """Of E|Q(v) - v|^2 / |v|^2, of its largest draw, and of the bias.

  `bias` is the root of the mean square of z, the error of an entry's mean in
  its standard errors, over the entries that Q changes by chance.
  """

  # An argument, for XLA would sort a constant while it compiles.
  def draw(v: jax.Array, key: jax.Array) -> jax.Array:
    return compressor.decode(compressor.encode(key, v), v) - v

  keys = jax.random.split(jax.random.key(1, impl='threefry2x32'), NUM_DRAWS)
  errors = np.asarray(jax.jit(jax.vmap(draw, (None, 0)))(v, keys), np.float64)
  square = np.square(errors).sum(axis=1) / float(jnp.square(v).sum())
  deviation = errors.std(axis=0)
  by_chance = deviation > 0
  z = errors.mean(axis=0)[by_chance] / deviation[by_chance]
  # Where there is none the mean is 0.
  bias = np.sqrt(NUM_DRAWS * np.square(z).mean()) if z.size else 0.0
  return {
    'error': float(square.mean()),
    'deviation': float(square.std() / np.sqrt(NUM_DRAWS)),
    'most': float(square.max()),
    'bias': float(bias),
  }


def _theory(name: str, v: jax.Array) -> dict[str, float]:
  """The exact E|Q(v) - v|^2 / |v|^2 of a quantizer, and its bound."""
  x = np.abs(np.asarray(v, np.float64))
  square = np.square(x).sum()
  if name == 'TernGrad':
    exact = (x.max() * x.sum() - square) / square
    # sum |v_i| <= sqrt(n) |v|, and max |v_i| <= |v|.
    return {'exact': float(exact), 'bound': float(np.sqrt(x.size) - 1)}
  levels = int(name.rsplit(' ', 1)[1])
  share = levels * x / np.sqrt(square)
  up = share - np.floor(share)
  exact = (up * (1 - up)).sum() / levels**2
  bound = min(x.size / levels**2, np.sqrt(x.size) / levels)
  return {'exact': float(exact), 'bound': float(bound)}


def claims(
  drawn: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]
) -> list[Claim]:
  """What the moments say of every promise."""
  return [
    _unbiased_claim(drawn),
    _variance_claim(drawn),
    *_contraction_claims(kept),
  ]


def _unbiased_claim(drawn: Mapping[str, Any]) -> Claim:
  biases = {
    name: max(m['bias'] for m in own.values()) for name, own in drawn.items()
  }
  shown = ', '.join(f'{name}: {bias:.3f}' for name, bias in biases.items())
  return Claim(
    says='QSGD and TernGrad are unbiased, E Q(v) = v (as such)',
    measured='root mean square of the errors of the mean in standard errors, '
    f'largest of {len(_vectors())} vectors: {shown}',
    reproduced=verdict(max(biases.values()) < UNBIASED),
    tried=f'below {UNBIASED} (1 if unbiased) with {NUM_DRAWS} draws of vectors '
    f'of {SIZE} entries: Gaussian, Student t, one large entry',
  )


def _variance_claim(drawn: Mapping[str, Any]) -> Claim:
  moments = [m for own in drawn.values() for m in own.values()]
  off = max(abs(m['error'] / m['exact'] - 1) for m in moments)
  below = max(m['error'] / m['bound'] for m in moments)
  shown = '; '.join(
    f'{name}: '
    + ', '.join(f'{m["error"]:.4g} of {m["bound"]:.4g}' for m in own.values())
    for name, own in drawn.items()
  )
  return Claim(
    says='E abs(Q(v) - v)^2 <= min(n/s^2, sqrt(n)/s) abs(v)^2 for QSGD (as '
    'such); max abs(v_i) abs(v)_1 - abs(v)^2 for TernGrad (derived), which is '
    'at most (sqrt(n) - 1) abs(v)^2',
    measured=f'measured of bound, by vector: {shown}; at most {off:.2%} from '
    'the exact variance',
    reproduced=verdict(below <= 1 and off < VARIANCE_TOLERANCE, below <= 1),
    tried='below the bound for every vector, and within '
    f'{VARIANCE_TOLERANCE:.0%} of the sum over entries of p (1 - p)',
  )


def _contraction_claims(kept: Sequence[Mapping[str, Any]]) -> list[Claim]:
  top = [k for k in kept if k['name'] == 'top-k']
  random = [k for k in kept if k['name'] == 'random-k']
  worst = max(k['most'] - (1 - k['fraction']) for k in top)
  off = [
    abs(k['error'] - (1 - k['fraction'])) / max(k['deviation'], ROUNDING)
    for k in random
  ]

  def told(ks: Sequence[Mapping[str, Any]]) -> str:
    return ', '.join(f'{k["error"]:.4f} of {1 - k["fraction"]:g}' for k in ks)

  return [
    Claim(
      says='top-k is a contraction: abs(Q(v) - v)^2 <= (1 - k/n) abs(v)^2 (as '
      'such)',
      measured=told(top),
      reproduced=verdict(worst <= ROUNDING),
      tried=f'at most, but for {ROUNDING:g}, for k/n = {FRACTIONS} and each of '
      'the vectors',
    ),
    Claim(
      says='random-k is one in the mean: E abs(Q(v) - v)^2 = (1 - k/n) '
      'abs(v)^2 (as such)',
      measured=f'{told(random)}; at most {max(off):.1f} standard errors off',
      reproduced=verdict(max(off) < 4),
      tried=f'within 4 standard errors of {NUM_DRAWS} draws',
    ),
  ]


def draw(drawn: Mapping[str, Any], axis: Axes) -> None:
  """Variances against their bound."""
  names = list(drawn)
  places = np.arange(len(names))
  kinds = list(drawn[names[0]])
  for kind, style in styles.categories(kinds).items():
    own = [drawn[name][kind] for name in names]
    errors, exact = [m['error'] for m in own], [m['exact'] for m in own]
    axis.plot(places, errors, style.marker, color=style.color, label=kind)
    axis.plot(places, exact, '_', color=style.color, ms=16)
  bounds = [drawn[name][kinds[0]]['bound'] for name in names]
  axis.plot(places, bounds, 'kv', label='bound')
  axis.plot([], [], 'k_', ms=12, label='exact')
  axis.set_yscale('log')
  axis.set_xlim(-0.5, len(names) - 0.5)
  ticks = [n.replace('QSGD, s = ', '') for n in names]
  axis.set_xticks(places, ticks)
  axis.set_xlabel('s, levels of QSGD, and TernGrad')
  axis.set_ylabel('E|Q(v) - v|² / |v|²')
