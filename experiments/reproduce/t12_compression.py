"""T12: what compressors promise, and what they save in training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.reproduce import images
from experiments.reproduce.simulation import simulate
from experiments.reproduce.target import (
  Claim,
  Outcome,
  Setting,
  Target,
  verdict,
)
import prsgd_jax as pr

# Vectors and draws of each.
SIZE, NUM_DRAWS = 1000, 4000
LEVELS, FRACTIONS = (1, 4, 16, 64), (0.01, 0.1, 0.5)
# Of sqrt(sum of the squared z / n), which is 1 if nothing is biased.
UNBIASED, VARIANCE_TOLERANCE = 1.1, 0.02
ROUNDING = 1e-5

NUM_REPLICAS, BATCH_SIZE, HIDDEN = 8, 8, (32,)
EVERY = 10
SEEDS = (0, 1, 2)
# Each twice the one before, of all methods.
RATES = tuple(2.0**k for k in range(-9, 2))
# Steps of SSGD that cost as many bytes as are given to each of them.
BUDGET_STEPS = 100
SSGD = 'SSGD'

Make = Callable[[jax.Array], pr.ReplicaTransformation]
METHODS: dict[str, Make] = {
  SSGD: lambda rate: pr.ssgd(optax.sgd(rate)),
  'QSGD, s = 7': lambda rate: pr.qsgd(optax.sgd(rate), levels=7),
  'TernGrad': lambda rate: pr.terngrad(optax.sgd(rate)),
  'signSGD, majority': lambda rate: pr.sign_sgd(optax.sgd(rate)),
  'top 5 %, error feedback': lambda rate: pr.error_feedback_sgd(
    optax.sgd(rate), compressor=pr.top_k(0.05)
  ),
}


def measure(setting: Setting) -> Outcome:
  """Draws codes of vectors, and trains with each compressor."""
  vectors = _vectors()
  quantizers = {
    **{f'QSGD, s = {s}': pr.stochastic_levels(s) for s in LEVELS},
    'TernGrad': pr.ternary(),
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
    for name, q in (('top-k', pr.top_k), ('random-k', pr.random_k))
  ]
  train, test = images.load(setting, 'digits')
  sizes = {name: _bytes_per_step(make, train) for name, make in METHODS.items()}
  budget = sizes[SSGD] * BUDGET_STEPS
  trained = {
    name: _train(make, train, test, int(budget / sizes[name]) // EVERY * EVERY)
    for name, make in METHODS.items()
  }
  chosen = {
    name: {'bytes_per_step': sizes[name], **_best(own)}
    for name, own in trained.items()
  }
  data = {
    'drawn': drawn,
    'kept': kept,
    'rates': RATES,
    'budget': budget,
    'chosen': chosen,
  }
  claims = [
    _unbiased_claim(drawn),
    _variance_claim(drawn),
    *_contraction_claims(kept),
    *_training_claims(trained, chosen, budget),
  ]
  return Outcome(claims, data, SEEDS)


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


def _moments(compressor: pr.Compressor, v: jax.Array) -> dict[str, float]:
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


def _bytes_per_step(make: Make, train: images.Examples) -> float:
  """What one replica sends."""
  key = jax.random.key(0, impl='threefry2x32')
  params = jax.eval_shape(images.Network(HIDDEN).start(train), key)
  shapes = pr.Replica(params, params)
  spent = pr.account(make(jnp.asarray(0.1)), shapes, NUM_REPLICAS, 1)
  return float(spent.bytes_sent[-1])


def _train(
  make: Make, train: images.Examples, test: images.Examples, num_steps: int
) -> dict[str, np.ndarray]:
  """Loss and accuracy along the runs, [rates, seeds, T / EVERY]."""
  network = images.Network(HIDDEN)
  everything, held = train.rows(slice(None)), test.rows(slice(None))

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del step, replica
    return network.loss(params, train.draw(key, BATCH_SIZE))

  def observe(params: Any) -> Any:
    # All replicas are the same.
    x = jax.tree.map(lambda leaf: leaf[0], params)
    return network.loss(x, everything), network.accuracy(x, held)

  loss, accuracy = simulate(
    make,
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(train),
    num_replicas=NUM_REPLICAS,
    num_steps=num_steps,
    observe=observe,
    every=EVERY,
  )
  # Of a run that diverged the loss is as large as a float can say.
  loss = np.nan_to_num(loss, nan=1e9, posinf=1e9)
  return {'loss': loss, 'accuracy': accuracy}


def _best(trained: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The runs at the learning rate with the least training loss at the end."""
  best = int(trained['loss'][:, :, -1].mean(axis=1).argmin())
  return {
    'steps': trained['loss'].shape[-1] * EVERY,
    'rate': best,
    'loss': trained['loss'][best].tolist(),
    'accuracy': trained['accuracy'][best].tolist(),
  }


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


def _training_claims(
  trained: Mapping[str, Mapping[str, np.ndarray]],
  chosen: Mapping[str, Any],
  budget: float,
) -> list[Claim]:
  losses = {name: np.array(own['loss'])[:, -1] for name, own in chosen.items()}
  found = {
    name: 100 * np.array(own['accuracy'])[:, -1] for name, own in chosen.items()
  }
  shown = '; '.join(
    f'{name} {chosen[name]["steps"]} steps, loss {losses[name].mean():.4f} (± '
    f'{np.ptp(losses[name]) / 2:.4f}), accuracy {found[name].mean():.1f} % (± '
    f'{np.ptp(found[name]) / 2:.1f}), rate {RATES[chosen[name]["rate"]]:.2g}'
    for name in chosen
  )
  gains = [
    losses[SSGD].mean() / losses[name].mean() for name in losses if name != SSGD
  ]
  better = [
    found[name].mean() - found[SSGD].mean() for name in found if name != SSGD
  ]
  equal = {
    name: own['loss'][:, :, BUDGET_STEPS // EVERY - 1].mean(axis=1).min()
    for name, own in trained.items()
  }
  ratios = {name: equal[name] / equal[SSGD] for name in equal if name != SSGD}
  rule = (
    f'each at the best learning rate of {RATES[0]:.2g}, twice it ... '
    f'{RATES[-1]:g} for its training loss; MLP of {HIDDEN[0]} on the digits, '
    f'N = {NUM_REPLICAS}, batches of {BATCH_SIZE}'
  )
  return [
    Claim(
      says='at equal bytes compressed gradients train further (as such: they '
      'save communication; no numbers of the papers)',
      measured=f'{budget / 1e6:.2f} MB sent by each replica: {shown}',
      reproduced=verdict(
        min(gains) > 1 and min(better) > 0, max(gains) > 1 and max(better) > 0
      ),
      tried='lower training loss and higher test accuracy than SSGD for every '
      f'method (partly: for one); {rule}',
    ),
    Claim(
      says='at equal steps they lose something by their noise or bias (ours: '
      'the check that equal bytes and equal steps are not the same)',
      measured=f'training loss over that of SSGD after {BUDGET_STEPS} steps: '
      + ', '.join(f'{name} {r:.2f}' for name, r in ratios.items()),
      reproduced=verdict(min(ratios.values()) > 1, max(ratios.values()) > 1),
      tried='above 1 for every method (partly: for one), which is then at its '
      f'best rate for so many steps; {rule}',
    ),
  ]


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Variances against their bound, and training against bytes."""
  axes = figure.subplots(1, 3)
  names = list(data['drawn'])
  places = np.arange(len(names))
  kinds = list(data['drawn'][names[0]])
  for i, kind in enumerate(kinds):
    own = [data['drawn'][name][kind] for name in names]
    axes[0].plot(places, [m['error'] for m in own], f'C{i}o', ms=5, label=kind)
    exact = [m['exact'] for m in own]
    axes[0].plot(places, exact, f'C{i}_', ms=16)
  bounds = [data['drawn'][name][kinds[0]]['bound'] for name in names]
  axes[0].plot(places, bounds, 'kv', label='bound')
  axes[0].plot([], [], 'k_', ms=12, label='exact')
  axes[0].set_yscale('log')
  axes[0].set_xticks(
    places, [n.replace('QSGD, ', '') for n in names], fontsize=7
  )
  axes[0].set_xlabel('QSGD with s levels, and TernGrad')
  axes[0].set_ylabel('E|Q(v) - v|² / |v|²')
  axes[0].legend(fontsize=6)
  panels = (
    ('loss', 'training loss, nats'),
    ('accuracy', 'test accuracy'),
  )
  for axis, (key, title) in zip(axes[1:], panels, strict=True):
    for name, own in data['chosen'].items():
      curve = np.array(own[key])
      steps = EVERY * np.arange(1, curve.shape[1] + 1)
      sent = steps * own['bytes_per_step'] / 1e6
      label = f'{name}, rate {data["rates"][own["rate"]]:.2g}'
      (line,) = axis.plot(sent, curve.mean(axis=0), label=label)
      axis.fill_between(
        sent,
        curve.min(axis=0),
        curve.max(axis=0),
        color=line.get_color(),
        alpha=0.2,
      )
    axis.set_xlim(0, data['budget'] / 1e6)
    axis.set_xlabel('MB sent by each replica')
    axis.set_ylabel(title)
  axes[1].set_yscale('log')
  axes[2].legend(fontsize=6)


TARGET = Target(
  name='t12_compression',
  title='Compressors: bias, variance, and training at equal bytes',
  paper='Alistarh et al. 2017 (arXiv 1610.02132), Wen et al. 2017 (arXiv '
  '1705.07878), Stich, Cordonnier, Jaggi 2018 (arXiv 1809.07599), Bernstein et '
  'al. 2019 (arXiv 1810.05291)',
  measure=measure,
  draw=draw,
)
