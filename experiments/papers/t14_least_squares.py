"""T14: mini-batches, tail averages and parameter mixing on least squares."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
import numpy as np
import optax

from experiments.papers import speed
from experiments.papers.claims import DERIVED, RECALLED, STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  above,
  at_most,
  below,
  every,
  some,
  within,
)
from experiments.papers.quantities import (
  Measurement,
  Quantity,
  by_case,
)
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.science import least_squares

SEEDS = (0, 1, 2, 3, 4)
DIMENSION = 20
SPECTRUM = np.linspace(1.0, 0.1, DIMENSION)
START = np.ones(DIMENSION)
NOISE = 1.0
BATCHES = (1, 2, 8, 32)
REPLICAS = (1, 4, 16)
# Independent copies per seed, by batch size: as many as cost about the same.
COPIES = {1: 256, 2: 256, 8: 64, 32: 16}
# And of the runs of several lengths, which take only one replica of each.
LONG_COPIES = 16
# Steps of a run -> the first step of its tail.
STEPS, FIRST, EVERY = 400, 200, 2
LENGTHS = (200, 800, 3200)
EACH = min(LENGTHS)
# Half of the largest rate of one example, for all batch sizes, and a smaller
# one, which is not run. Runs also have half of the largest of their batch size.
COMMON = least_squares.largest_rate(SPECTRUM, batch_size=1) / 2
SMALL = COMMON / 4
ERRORS, TOLERANCE, EXPONENT = 4.0, 0.02, 0.05
# Fraction of the first risk that the serial steps are counted to.
REACHED = 0.01


def measure(setting: Setting) -> Outcome:
  """Run SGD with every batch size, without label noise and from the optimum."""
  del setting
  rows = [_of_batch(b) for b in BATCHES]
  # The average starts after the run, so that the output is the last iterate.
  last = _risks((COMMON,), 1, LONG_COPIES, max(LENGTHS), max(LENGTHS), EACH)
  lengths = [_of_length(t, last) for t in LENGTHS]
  claims = [
    _exact_claim(rows),
    _batch_claim(rows),
    _replicas_claim(rows),
    _bias_claim(rows),
    _tail_claim(lengths),
    _bound_claim(rows),
    _serial_claim(rows),
  ]
  return Outcome(claims, {'rows': rows, 'lengths': lengths}, SEEDS)


def _rates(batch_size: int) -> tuple[float, float]:
  largest = least_squares.largest_rate(SPECTRUM, batch_size=batch_size)
  return COMMON, largest / 2


def _of_batch(batch_size: int) -> dict[str, Any]:
  """Summarize risks by rate; the replicas never communicate."""
  rates, copies = _rates(batch_size), COPIES[batch_size]
  # Both rates are equal for b = 1, where one run is enough.
  distinct = tuple(dict.fromkeys(rates))
  found = _risks(distinct, batch_size, copies, STEPS, FIRST, EVERY)
  # Until its tail begins, the output is the last iterate.
  begin = FIRST // EVERY - 1
  return {
    'batch_size': batch_size,
    'rates': list(rates),
    'tail': [_summary(found, k, -1) for k in (0, -1)],
    'last': [_summary(found, k, begin) for k in (0, -1)],
    'exact': [_exact(rate, batch_size, FIRST, STEPS) for rate in rates],
    # The bias of one replica along the run at its own rate, by seed.
    'curve': found[1][-1, :, : begin + 1, 0].mean(axis=(-2, -1)).tolist(),
  }


def _of_length(
  num_steps: int, last: Mapping[int, np.ndarray]
) -> dict[str, Any]:
  """Summarize a run with one example per step, half of it tail.

  Args:
    num_steps: T.
    last: risks of the last iterate, every `EACH` steps.
  """
  first = num_steps // 2
  tail = _risks((COMMON,), 1, LONG_COPIES, num_steps, first, num_steps)
  return {
    'steps': num_steps,
    'tail': _summary(tail, 0, -1),
    'last': _summary(last, 0, num_steps // EACH - 1),
    'exact': _exact(COMMON, 1, num_steps, num_steps, first),
  }


def _risks(
  rates: Sequence[float],
  batch_size: int,
  copies: int,
  num_steps: int,
  first: int,
  every: int,
) -> dict[int, np.ndarray]:
  """Return excess risks by N: [rates, seeds, points, parts, copies, groups].

  The parts are the bias (no label noise) and the variance (from the optimum).
  The groups are independent runs of N replicas.
  """
  h = jnp.asarray(SPECTRUM, jnp.float32)
  most = max(REPLICAS)
  noisy = jnp.array([0.0, NOISE**0.5])[:, None, None]

  def loss(e: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    x_key, y_key = jax.random.split(key)
    shape = (copies, batch_size, DIMENSION)
    x = jnp.sqrt(h) * jax.random.normal(x_key, shape)
    noise = noisy * jax.random.normal(y_key, shape[:2])
    miss = jnp.einsum('cbd,pcd->pcb', x, e) - noise
    return (miss**2).sum() / batch_size / 2

  def observe(e: jax.Array) -> dict[str, jax.Array]:
    # e: [N, parts, copies, d]. Independent replicas, so any n of them are a
    # run of n.
    found = {}
    for n in REPLICAS:
      means = e.reshape(most // n, n, *e.shape[1:]).mean(axis=1)
      found[str(n)] = jnp.moveaxis((means**2 @ h) / 2, 0, -1)
    return found

  start = jnp.zeros((2, copies, DIMENSION)).at[0].set(START)
  found: dict[str, np.ndarray] = simulate(
    lambda rate: pr.tail_averaging(optax.sgd(rate), start_step=first),
    rates,
    SEEDS,
    loss_fn=loss,
    start=start,
    num_replicas=most,
    num_steps=num_steps,
    observe=observe,
    every=every,
  )
  return {int(n): risks for n, risks in found.items()}


def _summary(
  found: Mapping[int, np.ndarray], rate: int, point: int
) -> dict[str, Any]:
  """Return the mean by seed and its error, by part and N.

  All copies and groups of all seeds are independent.

  Args:
    found: the results of `_risks`.
    rate: index of the rate.
    point: index of the point.
  """
  summary: dict[str, Any] = {'bias': {}, 'variance': {}}
  for n, risks in found.items():
    for part, own in zip(
      summary.values(), np.moveaxis(risks[rate, :, point], 1, 0), strict=True
    ):  # own: [seeds, copies, groups]
      part[f'N = {n}'] = {
        'seeds': own.mean(axis=(1, 2), dtype=float).tolist(),
        'error': float(own.std(ddof=1, dtype=float) / own.size**0.5),
      }
  return summary


def _exact(
  rate: float,
  batch_size: int,
  last: int,
  num_steps: int = STEPS,
  first: int = FIRST,
) -> dict[str, Any]:
  """Return the exact risks of the iterate after `last` steps, and of a tail."""

  def risks(n: int, num_steps: int, first: int) -> least_squares.Risks:
    return least_squares.excess_risks(
      eigenvalues=SPECTRUM,
      start=START,
      noise_variance=NOISE,
      learning_rate=rate,
      batch_size=batch_size,
      num_replicas=n,
      num_steps=num_steps,
      start_step=first,
    )

  return {
    f'N = {n}': {
      'last': risks(n, last, 0).last._asdict(),
      'tail': risks(n, num_steps, first).tail._asdict(),
    }
    for n in REPLICAS
  }


def _measurement(found: Mapping[str, Any]) -> Measurement:
  seeds = tuple(found['seeds'])
  return Measurement(float(np.mean(seeds)), seeds, found['error'])


def _name(row: Mapping[str, Any], n: str) -> str:
  return f'b = {row["batch_size"]}, {n}'


def _exact_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  measured: dict[str, Quantity] = {}
  for which in ('last', 'tail'):
    for part in ('bias', 'variance'):
      cases = [(r, f'N = {n}') for r in rows for n in REPLICAS]
      measured[f'{part} of the {which}'] = by_case(
        {_name(r, n): _measurement(r[which][1][part][n]) for r, n in cases}
      )
      measured[f'{part} of the {which}, exact'] = by_case(
        {_name(r, n): r['exact'][1][n][which][part] for r, n in cases}
      )
  judged = [name for name in measured if not name.endswith('exact')]
  near = [
    within(name, Ref(f'{name}, exact'), errors=ERRORS, relative=TOLERANCE)
    for name in judged
  ]
  allowed = max(
    ERRORS * (m.error or 0) / measured[f'{name}, exact'].cases[case].value
    for name in judged
    for case, m in measured[name].cases.items()
  )
  return Claim(
    text='The excess risks of the last iterate and of the tail average follow '
    'an exact recursion of second moments.',
    source=DERIVED,
    measured=measured,
    rule=Rule(every(All(tuple(near)))),
    setting=_setting('half of the largest rate of the batch size'),
    note='Bias: without label noise. Variance: from the optimum. The risk is '
    'their sum. Replicas never communicate before the end. The rule would '
    f'allow a difference of {allowed:.0%} in the case with the fewest runs.',
  )


def _setting(rate: str) -> str:
  return (
    f'Gaussian features in {DIMENSION} dimensions, eigenvalues '
    f'{SPECTRUM.max():g} to {SPECTRUM.min():g}, label noise of variance '
    f'{NOISE:g}; {STEPS} steps, tail from step {FIRST}, last iterate after '
    f'{FIRST} steps; {rate}; independent copies per seed: '
    + ', '.join(f'{c} for b = {b}' for b, c in COPIES.items())
    + '.'
  )


def _variances(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Return variances of the tail at the common rate, [b, N, seeds]."""
  return np.array(
    [
      [r['tail'][0]['variance'][f'N = {n}']['seeds'] for n in REPLICAS]
      for r in rows
    ]
  )


def exponent(sizes: Sequence[int], values: np.ndarray) -> np.ndarray:
  """Fit log values [K, ...] over log sizes by least squares."""
  x = np.log(sizes) - np.log(sizes).mean()
  return np.tensordot(x, np.log(values), 1) / (x @ x)


def _batch_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  names = [
    f'exact exponent of b at rate {rate:.4g}' for rate in (SMALL, COMMON)
  ]
  found = {
    name: by_case(
      {f'N = {n}': exact_exponent(rate, f'N = {n}') for n in REPLICAS}
    )
    for name, rate in zip(names, (SMALL, COMMON), strict=True)
  }
  simulated = exponent(BATCHES, _variances(rows))
  found[f'exponent of b at rate {COMMON:.4g}, simulated'] = by_case(
    {f'N = {n}': own for n, own in zip(REPLICAS, simulated, strict=True)}
  )
  return Claim(
    text='The variance of the tail average falls as 1/b with the batch size.',
    source=STATED,
    measured=found,
    rule=Rule(
      every(
        All(
          (
            within(names[0], -1, absolute=EXPONENT),
            at_most(names[1], -1 + EXPONENT),
          )
        )
      ),
      every(All(tuple(at_most(name, -1 + 3 * EXPONENT) for name in names))),
    ),
    setting=_setting('both rates for all batch sizes'),
    note='The exact recursion is judged, which simulated runs follow. The '
    'theorem bounds the variance by a multiple of 1/b. At the larger '
    'rate, half of the largest for b = 1, it falls faster, because the noise '
    'of the features adds to the variance of small batches.',
  )


def exact_exponent(rate: float, n: str) -> float:
  """Return the exponent of b of the exact variance of the tail average."""
  exact = [_exact(rate, b, FIRST)[n]['tail']['variance'] for b in BATCHES]
  return float(exponent(BATCHES, np.array(exact)))


def _replicas_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  by_number = exponent(REPLICAS, _variances(rows).swapaxes(0, 1))
  name = 'exponent of N'
  return Claim(
    text='Parameter mixing: the variance of the mean of N tail averages falls '
    'as 1/N.',
    source=STATED,
    measured={
      name: by_case({f'b = {b}': s for b, s in zip(BATCHES, by_number)})
    },
    rule=Rule(
      every(within(name, -1, absolute=EXPONENT)),
      every(within(name, -1, absolute=3 * EXPONENT)),
    ),
    setting=_setting(f'rate {COMMON:.4g}'),
  )


def _bias_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  most = f'N = {max(REPLICAS)}'

  def ratio(row: Mapping[str, Any], part: str) -> Measurement:
    one, all_of = (
      np.array(row['tail'][0][part][n]['seeds']) for n in ('N = 1', most)
    )
    return Measurement(one.mean() / all_of.mean(), tuple(one / all_of))

  bias, variance = (
    f'{part} of N = 1 over {most}' for part in ('bias', 'variance')
  )
  return Claim(
    text='Parameter mixing does not divide the bias by N.',
    source=STATED,
    measured={
      name: by_case({f'b = {r["batch_size"]}': ratio(r, part) for r in rows})
      for name, part in ((bias, 'bias'), (variance, 'variance'))
    },
    rule=Rule(
      every(All((below(bias, 2), above(variance, 0.8 * max(REPLICAS))))),
      every(below(bias, Ref(variance, times=0.5))),
    ),
    setting=_setting(f'rate {COMMON:.4g}'),
    note='The bias of a replica has a part from the noise of its features, '
    'which is averaged, and a common part, which is not.',
  )


def _tail_claim(lengths: Sequence[Mapping[str, Any]]) -> Claim:
  steps = [row['steps'] for row in lengths]
  tail, last = (
    np.array([row[w]['variance']['N = 1']['seeds'] for row in lengths])
    for w in ('tail', 'last')
  )
  optimal = [NOISE * DIMENSION / (t - t // 2) / 2 for t in steps]
  relative = 'variance of the tail over sigma^2 d / (2 b (T - s))'
  gain = 'variance of the last, relative to the tail'
  cases = [f'T = {t}' for t in steps]
  end = cases[-1]
  return Claim(
    text='The variance of the last iterate stops falling; the variance of the '
    'tail average falls as 1/(T - s), at the optimal statistical rate up to a '
    'constant of at most 4.',
    source=STATED + '; the constant: ' + RECALLED,
    measured={
      'variance of the last': by_case(dict(zip(cases, last))),
      'variance of the tail': by_case(dict(zip(cases, tail))),
      relative: by_case(
        {c: v / o for c, v, o in zip(cases, tail, optimal, strict=True)}
      ),
      gain: by_case(
        {
          c: Measurement(a.mean() / b.mean(), tuple(a / b))
          for c, a, b in zip(cases, last, tail, strict=True)
        }
      ),
    },
    rule=Rule(
      All(
        (
          every(at_most(relative, 4, seeds='each')),
          within(
            Ref('variance of the last', end),
            Ref('variance of the last', cases[-2]),
            relative=0.1,
          ),
          within(
            Ref('variance of the tail', cases[-2]),
            Ref('variance of the tail', end, times=steps[-1] / steps[-2]),
            relative=0.15,
          ),
          above(Ref(gain, end), 2),
        )
      ),
      above(Ref(gain, end), 1, seeds='each'),
    ),
    setting=f'b = 1, N = 1, rate {COMMON:.4g}, from the optimum, tail: the '
    f'second half of T steps; {LONG_COPIES * max(REPLICAS)} independent runs '
    'per seed.',
  )


def _bound_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  risk, whole = 'risk of the tail', 'bound'
  first, second = 'bound without its variance', 'bound without its bias'
  shown: dict[str, dict[str, Any]] = {n: {} for n in (risk, whole, first)}
  early: dict[str, Any] = {}
  for row in rows:
    case = f'b = {row["batch_size"]}'
    bound = _bound(row['rates'][1], row['batch_size'], STEPS, FIRST)
    parts = [row['tail'][1][p]['N = 1']['seeds'] for p in bound._fields]
    shown[risk][case] = np.sum(parts, axis=0)
    shown[whole][case], shown[first][case] = sum(bound), bound.bias
    # With a tail from the start, the bias matters.
    own = least_squares.excess_risks(
      eigenvalues=SPECTRUM, start=START, noise_variance=NOISE,
      learning_rate=row['rates'][1], batch_size=row['batch_size'],
      num_replicas=1, num_steps=8, start_step=0,
    ).tail  # fmt: skip
    short = _bound(row['rates'][1], row['batch_size'], 8, 0)
    early[case] = sum(own) / short.variance
  over = 'exact risk after 8 steps over the bound without its bias'
  return Claim(
    text='The theorem bounds the risk of the tail average for rates up to half '
    'of the largest one, and needs both of its terms.',
    source=RECALLED,
    measured={
      **{name: by_case(values) for name, values in shown.items()},
      over: by_case(early),
    },
    rule=Rule(
      All(
        (
          every(below(risk, Ref(whole), seeds='each')),
          some(above(risk, Ref(first), seeds='each')),
          above(Ref(over, f'b = {max(BATCHES)}'), 1),
        )
      ),
      every(below(risk, Ref(whole), seeds='each')),
    ),
    setting=_setting('half of the largest rate of the batch size'),
    note=f'Without a term it must be broken somewhere: {first} by larger '
    f'batches, {second} by short runs with b = {max(BATCHES)}.',
  )


def _bound(
  rate: float, batch_size: int, num_steps: int, first: int
) -> least_squares.Risk:
  return least_squares.tail_bound(
    eigenvalues=SPECTRUM,
    start_risk=float(SPECTRUM @ START**2 / 2),
    noise_variance=NOISE,
    learning_rate=rate,
    batch_size=batch_size,
    num_steps=num_steps,
    start_step=first,
  )


def serial_steps(row: Mapping[str, Any]) -> list[float]:
  """Return the steps to a fraction of the first risk, by seed."""
  begin = float(SPECTRUM @ START**2 / 2)
  steps = EVERY * np.arange(len(row['curve'][0]) + 1)
  return [
    speed.when_reached(steps, [begin, *curve], REACHED * begin)
    for curve in row['curve']
  ]


def _serial_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  limit = 1 + (SPECTRUM.sum() + 2 * SPECTRUM.max()) / SPECTRUM.max()
  taken = {r['batch_size']: np.array(serial_steps(r)) for r in rows}
  gain = {b: taken[1] / own / b for b, own in taken.items()}
  steps, share = 'serial steps', 'speedup over one example, relative to b'
  small = [f'b = {b}' for b in BATCHES if b <= limit / 4]
  large = [f'b = {b}' for b in BATCHES if b > limit]
  return Claim(
    text='Up to the batch size b_thresh, larger batches with larger rates save '
    'serial steps almost linearly; beyond it they do not.',
    source=STATED + '; b_thresh = 1 + R^2 / |H|: ' + RECALLED,
    measured={
      steps: by_case({f'b = {b}': v for b, v in taken.items()}),
      share: by_case({f'b = {b}': v for b, v in gain.items()}),
    },
    rule=Rule(
      All((every(above(share, 0.7), small), every(below(share, 0.5), large))),
      every(above(share, 0.5), small),
    ),
    setting=f'Steps until the bias of the last iterate is {REACHED:g} of the '
    f'first risk; b_thresh is {limit:.3g}. '
    + _setting('half of the largest rate of the batch size'),
    note=f'Almost linearly: at least 0.7 b for b up to b_thresh / 4. Checked '
    f'beyond it: {", ".join(large)}.',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw variances by N b, risks by the length, and serial steps by b."""
  figure.set_size_inches(drawing.WIDTH, 4)
  left, middle, right = figure.subplots(1, 3)
  _draw_variances(data['rows'], left)
  _draw_lengths(data['lengths'], middle)
  batches = [r['batch_size'] for r in data['rows']]
  taken = np.array([serial_steps(r) for r in data['rows']])
  look = styles.method('tail_averaging')
  drawing.spread(right, batches, taken, look, label='half of the largest rate')
  right.plot(
    batches, taken[0].mean() / np.array(batches), 'k:', lw=1, label='∝ 1/b'
  )
  right.set(
    xscale='log',
    yscale='log',
    xlabel='batch size b',
    ylabel=f'steps to {REACHED:g} of the first risk',
    title='serial steps',
  )
  right.legend()


def _draw_variances(rows: Sequence[Mapping[str, Any]], axis: Axes) -> None:
  looks = styles.variants('tail_averaging', REPLICAS)
  for n, style in looks.items():
    sizes = [n * r['batch_size'] for r in rows]
    seen = [r['tail'][0]['variance'][f'N = {n}']['seeds'] for r in rows]
    bare = style._replace(linestyle='none')
    drawing.spread(axis, sizes, seen, bare, label=f'N = {n}')
  sizes = sorted({n * r['batch_size'] for r in rows for n in REPLICAS})
  first = rows[-1]['exact'][0]['N = 1']['tail']['variance']
  first *= rows[-1]['batch_size']
  axis.plot(sizes, first / np.array(sizes), 'k:', lw=1, label='∝ 1/(N b)')
  axis.set(
    xscale='log',
    yscale='log',
    xlabel='N b, examples per step',
    ylabel='variance of the tail average',
    title='one learning rate',
  )
  axis.legend()


def _draw_lengths(lengths: Sequence[Mapping[str, Any]], axis: Axes) -> None:
  steps = [row['steps'] for row in lengths]
  names = {'last': 'one_shot_averaging', 'tail': 'tail_averaging'}
  for which, algorithm in names.items():
    seen = [row[which]['variance']['N = 1']['seeds'] for row in lengths]
    style = styles.method(algorithm)._replace(linestyle='none')
    told = 'last iterate' if which == 'last' else 'tail average'
    drawing.spread(axis, steps, seen, style, label=told)
    exact = [row['exact']['N = 1'][which]['variance'] for row in lengths]
    label = 'exact' if which == 'last' else '_'
    axis.plot(steps, exact, 'k-', lw=1, label=label)
  optimal = [NOISE * DIMENSION / (t - t // 2) / 2 for t in steps]
  axis.plot(steps, optimal, 'k--', lw=1, label=r'$\sigma^2 d / 2(T - s)$')
  axis.set(
    xscale='log',
    yscale='log',
    xlabel='T, steps',
    ylabel='variance, b = 1, N = 1',
    title='tail against last iterate',
  )
  axis.set_xticks(steps, [str(t) for t in steps])
  axis.xaxis.set_minor_locator(NullLocator())
  axis.legend()


TARGET = Target(
  name='t14_least_squares',
  title='Least squares: mini-batches, tail averages, parameter mixing',
  paper='Jain, Kakade, Kidambi, Netrapalli, Sidford 2018 (arXiv 1610.03774); '
  'Gaussian features, exact risks by recursion',
  measure=measure,
  draw=draw,
)
