"""The guarantees of compressors: no bias, bounded variance, contraction."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
import numpy as np

from experiments.papers.claims import DERIVED, STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  at_most,
  below,
  every,
  within,
)
from experiments.papers.quantities import Measurement, by_case, number
from experiments.papers.rules import Rule
from experiments.tools import styles
import prsgd_jax as pr

# Entries of a vector, and draws of its code.
SIZE, NUM_DRAWS = 1000, 4000
LEVELS, FRACTIONS = (1, 4, 16, 64), (0.01, 0.1, 0.5)
# Limit of sqrt(sum of the squared z / n), which is 1 without a bias.
UNBIASED, VARIANCE_TOLERANCE = 1.1, 0.02
ROUNDING = 1e-5


def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Measure moments of the codes of quantizers, and of sparsifiers."""
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
  """Return vectors: Gaussian, with heavy tails, with one large entry."""
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
  """Measure E|Q(v) - v|^2 / |v|^2, its largest draw, and the bias.

  `bias` is the root of the mean square of z over the entries that Q changes at
  random. z is the error of an entry's mean in its standard errors.
  """

  # v is an argument because XLA would sort a constant while it compiles.
  def draw(v: jax.Array, key: jax.Array) -> jax.Array:
    return compressor.decode(compressor.encode(key, v), v) - v

  keys = jax.random.split(jax.random.key(1, impl='threefry2x32'), NUM_DRAWS)
  errors = np.asarray(jax.jit(jax.vmap(draw, (None, 0)))(v, keys), np.float64)
  square = np.square(errors).sum(axis=1) / float(jnp.square(v).sum())
  deviation = errors.std(axis=0)
  by_chance = deviation > 0
  z = errors.mean(axis=0)[by_chance] / deviation[by_chance]
  # 0 without random entries, because their mean would be NaN.
  bias = np.sqrt(NUM_DRAWS * np.square(z).mean()) if z.size else 0.0
  return {
    'error': float(square.mean()),
    'deviation': float(square.std() / np.sqrt(NUM_DRAWS)),
    'most': float(square.max()),
    'bias': float(bias),
  }


def _theory(name: str, v: jax.Array) -> dict[str, float]:
  """Return the exact E|Q(v) - v|^2 / |v|^2 of a quantizer, and its bound."""
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
  """Judge every guarantee by the moments."""
  return [
    _unbiased_claim(drawn),
    _variance_claim(drawn),
    *_contraction_claims(kept),
  ]


def _unbiased_claim(drawn: Mapping[str, Any]) -> Claim:
  biases = {
    name: max(m['bias'] for m in own.values()) for name, own in drawn.items()
  }
  error = 'error of the mean'
  return Claim(
    text='QSGD and TernGrad are unbiased: E Q(v) = v.',
    source=STATED,
    measured={error: by_case(biases, 'standard errors')},
    rule=Rule(every(below(error, UNBIASED))),
    setting='Root mean square over the entries, the largest of '
    f'{len(_vectors())} vectors of {SIZE} entries: Gaussian, Student t, one '
    f'large entry. {NUM_DRAWS} draws. Without a bias it is about 1.',
  )


def _variance_claim(drawn: Mapping[str, Any]) -> Claim:
  moments = {
    f'{name}, {kind}': m
    for name, own in drawn.items()
    for kind, m in own.items()
  }
  error, bound, exact = 'relative error', 'bound', 'exact'
  bounded = at_most(error, Ref(bound))
  off = max(abs(m['error'] / m['exact'] - 1) for m in moments.values())
  close = within(error, Ref(exact), relative=VARIANCE_TOLERANCE)
  return Claim(
    text='For QSGD, E |Q(v) - v|^2 <= min(n/s^2, sqrt(n)/s) |v|^2. For '
    'TernGrad it is max |v_i| |v|_1 - |v|^2, at most (sqrt(n) - 1) |v|^2.',
    source=f'{STATED} for QSGD; {DERIVED} for TernGrad',
    measured={
      'largest deviation from exact': number(100 * off, '%'),
      error: by_case(
        {
          case: Measurement(m['error'], error=m['deviation'])
          for case, m in moments.items()
        }
      ),
      bound: by_case({case: m['bound'] for case, m in moments.items()}),
      exact: by_case({case: m['exact'] for case, m in moments.items()}),
    },
    rule=Rule(every(All((bounded, close))), every(bounded)),
    setting='The relative error is E |Q(v) - v|^2 / |v|^2, ± its standard '
    'error. The exact one is the sum over the entries of p (1 - p).',
  )


def _contraction_claims(kept: Sequence[Mapping[str, Any]]) -> list[Claim]:
  def cases(name: str) -> dict[str, Mapping[str, Any]]:
    return {
      f'k/n = {k["fraction"]:g}, {k["kind"]}': k
      for k in kept
      if k['name'] == name
    }

  top, random = cases('top-k'), cases('random-k')
  rest, largest, excess = '1 - k/n', 'largest relative error', 'excess'
  error = 'relative error'
  off = [
    abs(k['error'] - (1 - k['fraction'])) / max(k['deviation'], ROUNDING)
    for k in random.values()
  ]
  return [
    Claim(
      text='Top-k is a contraction: |Q(v) - v|^2 <= (1 - k/n) |v|^2.',
      source=STATED,
      measured={
        largest: by_case({c: k['most'] for c, k in top.items()}),
        rest: by_case({c: 1 - k['fraction'] for c, k in top.items()}),
        excess: by_case(
          {c: k['most'] - (1 - k['fraction']) for c, k in top.items()}
        ),
      },
      rule=Rule(every(at_most(excess, ROUNDING))),
      setting=f'The largest of {NUM_DRAWS} draws, less 1 - k/n. The limit '
      'allows for rounding.',
    ),
    Claim(
      text='Random-k is a contraction in the mean: E |Q(v) - v|^2 = (1 - k/n) '
      '|v|^2.',
      source=STATED,
      measured={
        'largest deviation': number(max(off), 'standard errors'),
        error: by_case(
          {
            c: Measurement(k['error'], error=k['deviation'])
            for c, k in random.items()
          }
        ),
        rest: by_case({c: 1 - k['fraction'] for c, k in random.items()}),
      },
      rule=Rule(
        every(within(error, Ref(rest), absolute=4 * ROUNDING, errors=4))
      ),
      setting=f'{NUM_DRAWS} draws; ± is the standard error.',
    ),
  ]


def draw(drawn: Mapping[str, Any], axis: Axes) -> None:
  """Draw variances with their bound."""
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
