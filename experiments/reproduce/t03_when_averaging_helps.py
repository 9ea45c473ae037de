"""T3: when averaging helps, of Zhang, De Sa, Mitliagkas, Re 2016.

Replicas draw from one pool and are averaged with probability zeta at each step,
and once more at the end. On convex problems that pays where the variance of the
gradient grows with the distance from the optimum; on others, where there are
several optima.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import optax
from scipy import stats

from experiments.reproduce.simulation import simulate
from experiments.reproduce.target import (
  Claim,
  Outcome,
  Setting,
  Target,
  verdict,
)
import prsgd_jax as pr
from prsgd_jax import augmentation, laws, models
from prsgd_jax.classification import classifier
from prsgd_jax.datasets import load_dataset

SEEDS = (0, 1, 2, 3, 4)

# The variance law: its constants, and how closely it is to be met.
LAW: dict[str, Any] = {
  'num_replicas': 8,
  'learning_rate': 0.1,
  'curvature': 1.0,
  'sigma_squared': 1.0,
}
LAW_PROBABILITIES = {
  10.0: (0.0, 0.01, 0.05, 0.2, 1.0),
  5.0: (0.0, 0.01, 0.05, 0.2, 1.0),
  0.0: (0.0, 1.0),
}
LAW_STEPS, LAW_BURN_IN, LAW_COPIES = 16000, 500, 250
LAW_TOLERANCE, LAW_ERRORS = 0.03, 3

# Problems with two optima.
NUM_REPLICAS = 24
PROBABILITIES = {'quartic': (0.0, 0.001, 0.01), 'pca': (0.0, 0.005, 0.05)}
COPIES = {'quartic': 100, 'pca': 25}
QUARTIC_STEPS, PCA_STEPS = 4000, 1500
SPECTRUM = (1.0, 0.5, 0.4, 0.3, 0.2, 0.1)
ONE_SHOT_TOLERANCE, SOLVED = 0.03, 0.05

# Least squares: what the ratio is made of, and the learning rates tried.
KURTOSES = (1.0, 4.0)
DISTANCES = (1.0, 10.0)
LABEL_NOISES = (0.1, 1.0, 10.0, 100.0)
REGRESSION_DIMENSION, REGRESSION_COPIES = 10, 20
REGRESSION_STEPS, REGRESSION_REPLICAS = 300, 8
RATES = tuple(np.geomspace(3e-4, 0.2, 14).tolist())

# LeNet-5.
EXAMPLES, TEST_EXAMPLES = 20000, 2000
LENET = {'num_replicas': 4, 'batch_size': 32, 'steps': 150, 'period': 10}
LENET_RATE, LENET_MOMENTUM = 0.02, 0.9
LENET_EVERY = 25
STARTS = ('same', 'different')
SCHEMES = ('once', 'every 10')


def _averaging(
  rate: Any, probability: float, num_steps: int
) -> pr.ReplicaTransformation:
  """Local SGD, averaged with a probability and at the end (order C)."""
  tosses = pr.with_probability(probability, num_steps=num_steps)
  return pr.chain(
    pr.gradient(),
    pr.local_update(optax.sgd(rate)),
    pr.sync(pr.mean(), when=pr.any_of(tosses, pr.at([num_steps - 1]))),
  )


def _signs(key: jax.Array, shape: Sequence[int], count: int) -> list[jax.Array]:
  """Random signs of which one draw of bits is enough."""
  bits = jax.random.bits(key, tuple(shape), 'uint8')
  return [2.0 * ((bits >> i) & 1) - 1 for i in range(count)]


# --- The variance law ---


def _law() -> list[dict[str, Any]]:
  """lim E[wbar^2] for every beta^2 and zeta, measured and derived."""
  return [
    _law_point(beta_squared, zeta)
    for beta_squared, probabilities in LAW_PROBABILITIES.items()
    for zeta in probabilities
  ]


def _law_point(beta_squared: float, zeta: float) -> dict[str, Any]:
  beta, sigma = beta_squared**0.5, LAW['sigma_squared'] ** 0.5

  def loss(w: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    b, h = _signs(key, w.shape, 2)
    return ((LAW['curvature'] - beta * b) * w**2 / 2 - sigma * h * w).sum()

  squares = simulate(
    lambda rate: _averaging(rate, zeta, LAW_STEPS),
    (LAW['learning_rate'],),
    SEEDS,
    loss_fn=loss,
    start=jnp.zeros(LAW_COPIES),
    num_replicas=int(LAW['num_replicas']),
    num_steps=LAW_STEPS,
    observe=lambda w: (w.mean(axis=0) ** 2).mean(),
    every=10,
  )[0]
  by_seed = squares[:, LAW_BURN_IN // 10 :].mean(axis=1, dtype=np.float64)
  derived = laws.averaged_quadratic_variance(
    probability=zeta, beta_squared=beta_squared, **LAW
  )
  return {
    'beta_squared': beta_squared,
    'probability': zeta,
    'measured': float(by_seed.mean()),
    'error': _standard_error(by_seed),
    'derived': derived,
  }


def _law_claims(points: Sequence[Mapping[str, Any]]) -> list[Claim]:
  noisy = [p for p in points if p['beta_squared'] > 0]
  close = [_deviation(p) <= LAW_TOLERANCE for p in noisy]
  likely = [
    abs(p['measured'] - p['derived']) <= LAW_ERRORS * p['error'] for p in noisy
  ]
  shown = [
    f'beta^2 = {p["beta_squared"]:g}, zeta = {p["probability"]:g}: '
    f'{p["measured"]:.5f} ± {p["error"]:.5f} for {p["derived"]:.5f}'
    for p in noisy
  ]
  flat = [p for p in points if p['beta_squared'] == 0]
  apart = abs(flat[0]['measured'] / flat[-1]['measured'] - 1)
  return [
    Claim(
      "averaging more often lowers the variance where the gradient's grows "
      'with the distance [S]; lim E wbar^2 = (alpha sigma^2 / M) / (2 c - '
      'alpha c^2 - alpha beta^2 theta) [derived]',
      '; '.join(shown) + ' (± standard error over seeds)',
      verdict(
        all(close),
        partly=all(a or b for a, b in zip(close, likely, strict=True)),
      ),
      f'rule: all within {LAW_TOLERANCE:.0%}; partly if those that are not are '
      f'within {LAW_ERRORS} standard errors (with beta^2 = 10 and few averages '
      'w has no fourth moment, so that means of w^2 converge slowly). c = 1, '
      f'alpha = {LAW["learning_rate"]}, sigma^2 = 1, M = '
      f'{LAW["num_replicas"]}, noise of random signs',
    ),
    Claim(
      'with beta = 0 it does not matter how often one averages [derived]',
      f'{flat[0]["measured"]:.6f} at zeta = {flat[0]["probability"]:g}, '
      f'{flat[-1]["measured"]:.6f} at zeta = {flat[-1]["probability"]:g}, for '
      f'{flat[0]["derived"]:.6f}',
      verdict(apart <= 1e-3 and max(map(_deviation, flat)) <= LAW_TOLERANCE),
      'rule: 0.1 % apart at most (the noise is the same), and within '
      f'{LAW_TOLERANCE:.0%} of the law',
    ),
  ]


def _deviation(point: Mapping[str, Any]) -> float:
  return abs(point['measured'] / point['derived'] - 1)


# --- Two optima ---


def _quartic(probability: float) -> np.ndarray:
  """f(wbar) at the end, [seeds, copies], of f(w) = (w^2 - 1)^2 from 0."""

  def loss(w: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    (noise,) = _signs(key, w.shape, 1)
    return ((w**2 - 1) ** 2 - noise * w).sum()

  last = simulate(
    lambda rate: _averaging(rate, probability, QUARTIC_STEPS),
    (0.02,),
    SEEDS,
    loss_fn=loss,
    start=jnp.zeros(COPIES['quartic']),
    num_replicas=NUM_REPLICAS,
    num_steps=QUARTIC_STEPS,
    observe=lambda w: w.mean(axis=0),
    every=QUARTIC_STEPS,
  )[0, :, 0]
  return (last**2 - 1) ** 2


def _pca(probability: float) -> np.ndarray:
  """(f(wbar) - f*) / (f(0) - f*), [seeds, copies], f(w) = |A - w w'|^2 / 4.

  A is the covariance of what is drawn; +v and -v are optimal, v its first
  eigenvector times the root of the eigenvalue. Every replica starts from a
  small random point of its own.
  """
  scale = jnp.sqrt(jnp.asarray(SPECTRUM))
  shape = (COPIES['pca'], len(SPECTRUM))

  def loss(w: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    x = scale * jax.random.normal(key, shape)
    return ((w**2).sum(-1) ** 2 / 4 - (x * w).sum(-1) ** 2 / 2).sum()

  last = simulate(
    lambda rate: _averaging(rate, probability, PCA_STEPS),
    (0.01,),
    SEEDS,
    loss_fn=loss,
    start=lambda key: 0.1 * jax.random.normal(key, (NUM_REPLICAS, *shape)),
    num_replicas=NUM_REPLICAS,
    num_steps=PCA_STEPS,
    observe=lambda w: w.mean(axis=0),
    every=PCA_STEPS,
    per_replica=True,
  )[0, :, 0]
  spectrum = np.array(SPECTRUM)
  value = (last**2).sum(-1) ** 2 / 4 - (spectrum * last**2).sum(-1) / 2
  return 1 + 4 * value / spectrum.max() ** 2


def _two_optima() -> dict[str, list[dict[str, float]]]:
  problems = {'quartic': _quartic, 'pca': _pca}
  found: dict[str, list[dict[str, float]]] = {}
  for name, problem in problems.items():
    found[name] = []
    for zeta in PROBABILITIES[name]:
      by_seed = problem(zeta).mean(axis=1, dtype=np.float64)
      found[name].append(
        {
          'probability': zeta,
          'measured': float(by_seed.mean()),
          'error': _standard_error(by_seed),
        }
      )
  return found


def _two_optima_claims(found: Mapping[str, Any]) -> list[Claim]:
  derived = laws.one_shot_quartic(NUM_REPLICAS)
  claims = []
  for name, says in (
    (
      'quartic',
      f'f(w) = (w^2 - 1)^2 from 0: one average at the end has E f = '
      f'{derived:.4f} for {NUM_REPLICAS} replicas, averages at a rate >= 0.001 '
      'about 0 [derived]',
    ),
    (
      'pca',
      'PCA, where +v and -v are optimal: one average at the end fails, rare '
      'averages suffice [S]; as in the quartic '
      f'{derived:.4f} of the loss at 0 is left [derived]',
    ),
  ):
    once, *often = found[name]
    fails = abs(once['measured'] - derived) <= ONE_SHOT_TOLERANCE
    solved = max(p['measured'] for p in often) <= SOLVED
    shown = [
      f'{p["measured"]:.4f} ± {p["error"]:.4f} at zeta = {p["probability"]:g}'
      for p in found[name]
    ]
    claims.append(
      Claim(
        says,
        '; '.join(shown) + ' (± standard error over seeds)',
        verdict(fails and solved, partly=fails or solved),
        f'rule: within {ONE_SHOT_TOLERANCE} of the derived value at zeta = 0, '
        f'and at most {SOLVED} from zeta = {often[0]["probability"]:g} on; '
        'partly if one of both',
      )
    )
  return claims


# --- Which convex problems gain ---


def _regression() -> list[dict[str, Any]]:
  """Least squares: averages at each step against one, for many problems.

  y = x'w* + noise, x = u z with z standard normal and u^2 of mean 1 and second
  moment k: the gradient x x'(w - w*) - x noise at one example has beta^2 =
  (d + 2) k - 1 and sigma^2 = d Var(noise) exactly.
  """
  problems = np.array(
    list(itertools.product(KURTOSES, DISTANCES, LABEL_NOISES))
  )
  kurtosis, distance, noise = problems.T
  d = REGRESSION_DIMENSION
  shape = (len(problems), REGRESSION_COPIES, d)
  wide, label_noise = (jnp.asarray(v)[:, None] for v in (kurtosis, noise))
  direction = np.full(d, d**-0.5)
  # Of w - w*, whose optimum is 0.
  start = jnp.asarray(distance[:, None, None] * direction) * jnp.ones(shape)

  def loss(e: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    z_key, u_key, y_key = jax.random.split(key, 3)
    # u^2 is k with probability 1 / k, otherwise 0.
    present = jax.random.uniform(u_key, shape[:2]) * wide < 1
    u = jnp.sqrt(wide) * present
    x = u[..., None] * jax.random.normal(z_key, shape)
    miss = (x * e).sum(-1) - label_noise * jax.random.normal(y_key, shape[:2])
    return (miss**2).sum() / 2

  def final(probability: float) -> np.ndarray:
    errors = simulate(
      lambda rate: _averaging(rate, probability, REGRESSION_STEPS),
      RATES,
      SEEDS[:1],
      loss_fn=loss,
      start=start,
      num_replicas=REGRESSION_REPLICAS,
      num_steps=REGRESSION_STEPS,
      observe=lambda e: (e.mean(axis=0) ** 2).sum(-1),
      every=REGRESSION_STEPS,
    )[:, 0, 0]
    return np.where(np.isfinite(errors), errors, np.inf)  # [K, P, copies]

  once, always = final(0.0), final(1.0)
  found = []
  for p, (k, start_distance, s) in enumerate(problems.tolist()):
    best = [int(e[:, p].mean(axis=1).argmin()) for e in (once, always)]
    pair = [e[b, p] for e, b in zip((once, always), best, strict=True)]
    beta_squared, sigma_squared = (d + 2) * k - 1, d * s**2
    found.append(
      {
        'beta_squared': beta_squared,
        'sigma_squared': sigma_squared,
        'distance': start_distance,
        'ratio': beta_squared * start_distance**2 / sigma_squared,
        'rates': [RATES[b] for b in best],
        'once': float(pair[0].mean()),
        'always': float(pair[1].mean()),
        'gain': float(pair[0].mean() / pair[1].mean()),
      }
    )
  return sorted(found, key=lambda row: row['ratio'])


def _regression_claim(found: Sequence[Mapping[str, Any]]) -> Claim:
  ratios, gains = (np.array([r[n] for r in found]) for n in ('ratio', 'gain'))
  ranked = float(stats.spearmanr(ratios, gains).statistic)
  small = gains[ratios <= 0.01]
  large = gains[ratios >= 100]
  separate = small.max() < 1.25 and large.min() > 2
  return Claim(
    'for convex f frequent averages pay where beta^2 |w0 - w*|^2 / sigma^2 is '
    'large, and not where it is small [S]',
    f'rank correlation of that ratio with the gain (error with one average / '
    f'with one at each step) {ranked:.2f} over {len(found)} problems; gain '
    f'{small.min():.2f} to {small.max():.2f} where it is <= 0.01, '
    f'{large.min():.1f} to {large.max():.3g} where it is >= 100',
    verdict(ranked >= 0.9 and bool(separate), partly=ranked >= 0.7),
    'rule: rank correlation >= 0.9, gain < 1.25 for ratios <= 0.01 and > 2 for '
    'ratios >= 100; partly if the correlation is >= 0.7. Least squares, '
    f'E|wbar - w*|^2 after {REGRESSION_STEPS} steps of '
    f'{REGRESSION_REPLICAS} replicas; learning rate of each method and problem '
    f'the best of {len(RATES)} from {RATES[0]:g} to {RATES[-1]:g}',
  )


# --- LeNet-5 ---


def _lenet(setting: Setting) -> dict[str, Any]:
  """Test accuracy of the mean model, and of the replicas before the last mean.

  The averages are all that differs: what both schemes put out is the replicas.
  """
  dataset = load_dataset('mnist', setting.data_dir)
  train = {k: v[:EXAMPLES] for k, v in dataset.train.items()}
  test = {k: v[:TEST_EXAMPLES] for k, v in dataset.test.items()}
  statistics = augmentation.channel_statistics(train['image'])

  def normalised(batch: Any) -> Any:
    image = augmentation.normalise(batch['image'], *statistics)
    return {**batch, 'image': image}

  task = classifier(models.LeNet5(dataset.num_classes))
  n, steps = LENET['num_replicas'], LENET['steps']
  mesh = pr.ReplicaMesh(n, 1)
  sampler = pr.shared(EXAMPLES, n, LENET['batch_size'], seed=0)
  data = mesh.replicate(train)
  held_out = pr.shard_examples(mesh, test, 500)
  keys = jax.random.split(jax.random.key(0, impl='threefry2x32'), n)
  example = normalised({'image': jnp.asarray(train['image'][:1])})
  points = jax.vmap(lambda key: task.init(key, example)[0])(keys)
  tx = optax.sgd(LENET_RATE, LENET_MOMENTUM)
  algorithms = {
    'once': pr.k_avg(tx, period=steps),
    'every 10': pr.k_avg(tx, period=LENET['period']),
  }

  def score(params: Any, model_state: Any, batch: Any) -> Any:
    return task.eval_fn(params, model_state, normalised(batch))

  evaluate = pr.make_evaluate(mesh, algorithms['once'], score)
  evaluate_replicas = pr.make_evaluate_replicas(mesh, algorithms['once'], score)
  runs = {}
  for scheme, algorithm in algorithms.items():
    train_steps = pr.make_resident_train_steps(
      mesh,
      algorithm,
      task.loss_fn,
      pr.make_batch_fn(mesh, sampler, lambda key, batch: normalised(batch)),
    )
    for start in STARTS:
      begin = points
      if start == 'same':
        begin = jax.tree.map(lambda x: jnp.broadcast_to(x[0], x.shape), points)
      state = pr.create_train_state(
        mesh, algorithm, begin, {}, per_replica=True
      )
      curve = []
      for done in range(LENET_EVERY, steps + 1, LENET_EVERY):
        state, _ = train_steps(state, data, LENET_EVERY - 1)
        if done == steps:
          own = evaluate_replicas(state, held_out)['accuracy']
        state, _ = train_steps(state, data, 1)
        curve.append(evaluate(state, held_out)['accuracy'])
      runs[f'{scheme}, {start}'] = {
        'mean': curve,
        'replicas_before': own.tolist(),
      }
  return {
    'steps': list(range(LENET_EVERY, steps + 1, LENET_EVERY)),
    'runs': runs,
  }


def _lenet_claims(found: Mapping[str, Any]) -> list[Claim]:
  final = {name: run['mean'][-1] for name, run in found['runs'].items()}
  own = {
    name: float(np.mean(run['replicas_before']))
    for name, run in found['runs'].items()
  }

  def shown(start: str) -> str:
    return '; '.join(
      f'{scheme}: {final[f"{scheme}, {start}"]:.1%} (a replica just before '
      f'{own[f"{scheme}, {start}"]:.1%})'
      for scheme in SCHEMES
    )

  setting = (
    f'LeNet-5, {LENET["num_replicas"]} replicas x {LENET["batch_size"]}, '
    f'{LENET["steps"]} steps, learning rate {LENET_RATE}, momentum '
    f'{LENET_MOMENTUM} for both; first {EXAMPLES} training and {TEST_EXAMPLES} '
    'test images, one seed'
  )
  gap = final['every 10, different'] - final['once, different']
  lost = own['once, different'] - final['once, different']
  same = final['every 10, same'] - final['once, same']
  return [
    Claim(
      'LeNet-5 on MNIST, every 10 steps against once: one average at the end '
      'is much worse [S; from which starts is not said]. From different starts',
      f'test accuracy {shown("different")}',
      verdict(gap >= 0.3 and lost >= 0.3, partly=gap >= 0.05),
      'rule: one average is at least 30 points below averages every 10, and '
      f'below its own replicas; partly if 5 below. {setting}',
    ),
    Claim(
      'the same from one start: one average at the end does not fail [derived: '
      'a trial with an MLP]',
      f'test accuracy {shown("same")}',
      verdict(same <= 0.03, partly=same <= 0.1),
      'rule: at most 3 points below averages every 10; partly if 10',
    ),
  ]


def _standard_error(values: np.ndarray) -> float:
  return float(values.std(ddof=1) / len(values) ** 0.5)


def _measure(setting: Setting) -> Outcome:
  law, two_optima, regression = _law(), _two_optima(), _regression()
  lenet = _lenet(setting)
  claims = [
    *_law_claims(law),
    *_two_optima_claims(two_optima),
    _regression_claim(regression),
    *_lenet_claims(lenet),
  ]
  data = {
    'law': law,
    'two_optima': two_optima,
    'one_shot': laws.one_shot_quartic(NUM_REPLICAS),
    'regression': regression,
    'lenet': lenet,
  }
  return Outcome(claims, data, SEEDS)


# --- The figure ---


def _draw(data: Mapping[str, Any], figure: Figure) -> None:
  figure.set_size_inches(10, 7.5)
  axes = figure.subplots(2, 2)
  _draw_law(data['law'], axes[0, 0])
  _draw_two_optima(data, axes[0, 1])
  _draw_regression(data['regression'], axes[1, 0])
  _draw_lenet(data['lenet'], axes[1, 1])


def _draw_law(points: Sequence[Mapping[str, Any]], ax: Axes) -> None:
  zeta = np.concatenate([[0], np.geomspace(1e-3, 1, 100)])
  for i, beta_squared in enumerate(LAW_PROBABILITIES):
    law = [
      laws.averaged_quadratic_variance(
        probability=z, beta_squared=beta_squared, **LAW
      )
      for z in zeta
    ]
    own = [p for p in points if p['beta_squared'] == beta_squared]
    ax.plot(
      zeta, law, color=f'C{i}', label=rf'law, $\beta^2$ = {beta_squared:g}'
    )
    ax.errorbar(
      [p['probability'] for p in own],
      [p['measured'] for p in own],
      [p['error'] for p in own],
      fmt='o',
      color=f'C{i}',
      label=rf'measured, $\beta^2$ = {beta_squared:g}',
    )
  _probability_axis(ax, 1e-2, 1.3)
  ax.set(
    ylabel='lim E[wbar²]', title='Quadratic, noisy curvature', ylim=(0, 0.02)
  )
  ax.legend(loc='upper right', fontsize=8)


def _draw_two_optima(data: Mapping[str, Any], ax: Axes) -> None:
  names = {'quartic': '$(w^2 - 1)^2$', 'pca': 'PCA'}
  for name, label in names.items():
    points = data['two_optima'][name]
    ax.errorbar(
      [p['probability'] for p in points],
      [p['measured'] for p in points],
      [p['error'] for p in points],
      fmt='o-',
      label=label,
    )
  ax.axhline(
    data['one_shot'], color='k', ls=':', lw=1, label='derived, one average'
  )
  _probability_axis(ax, 1e-3, 0.1)
  ax.set(
    ylabel='loss of the mean / loss at 0',
    title='Two optima',
    ylim=(-0.03, 1.03),
  )
  ax.legend()


def _probability_axis(ax: Axes, first: float, last: float) -> None:
  ax.set_xscale('symlog', linthresh=first)
  ax.set_xlim(-first / 10, last)
  ax.set_xlabel(r'$\zeta$, probability of an average at a step')


def _draw_regression(found: Sequence[Mapping[str, Any]], ax: Axes) -> None:
  kinds = sorted({(r['beta_squared'], r['distance']) for r in found})
  for kind in kinds:
    own = [r for r in found if (r['beta_squared'], r['distance']) == kind]
    ax.loglog(
      [r['ratio'] for r in own],
      [r['gain'] for r in own],
      'o',
      label=rf'$\beta^2$ = {kind[0]:g}, $|w_0 - w^*|$ = {kind[1]:g}',
    )
  ax.axhline(1, color='k', lw=0.5)
  ax.set(
    xlabel=r'$\beta^2\, |w_0 - w^*|^2 / \sigma^2$',
    ylabel='error, one average / every step',
    title='Least squares, tuned learning rates',
  )
  ax.legend()


def _draw_lenet(found: Mapping[str, Any], ax: Axes) -> None:
  for i, scheme in enumerate(SCHEMES):
    for start, style in zip(STARTS, ('-', '--'), strict=True):
      run = found['runs'][f'{scheme}, {start}']
      ax.plot(
        found['steps'],
        100 * np.array(run['mean']),
        style,
        marker='.',
        color=f'C{i}',
        label=f'averaged {scheme}, {start} starts',
      )
  ax.set(
    xlabel='steps',
    ylabel='test accuracy of the mean model, %',
    title='LeNet-5, MNIST',
    ylim=(0, 102),
  )
  ax.legend()


TARGET = Target(
  name='t03_when_averaging_helps',
  title='When averaging helps: variance, several optima, starts',
  paper='Zhang, De Sa, Mitliagkas, Re 2016 (arXiv 1606.07365)',
  measure=_measure,
  draw=_draw,
)
