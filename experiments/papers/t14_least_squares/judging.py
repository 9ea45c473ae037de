"""Claims on mini-batches, tail averages and parameter mixing, judged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
from experiments.papers.quantities import Measurement, Quantity, by_case
from experiments.papers.rules import Rule
from experiments.papers.t14_least_squares import runs
from experiments.papers.t14_least_squares.runs import (
  BATCHES,
  COMMON,
  COPIES,
  DIMENSION,
  FIRST,
  LONG_COPIES,
  NOISE,
  REACHED,
  REPLICAS,
  SMALL,
  SPECTRUM,
  START,
  STEPS,
)
from prsgd_jax.science import least_squares

ERRORS, TOLERANCE, EXPONENT = 4.0, 0.02, 0.05


def claims(
  rows: Sequence[Mapping[str, Any]], lengths: Sequence[Mapping[str, Any]]
) -> list[Claim]:
  """Judge all claims.

  Args:
    rows: results of `runs.of_batch`.
    lengths: results of `runs.of_length`.
  """
  return [
    _exact_claim(rows),
    _batch_claim(rows),
    _replicas_claim(rows),
    _bias_claim(rows),
    _tail_claim(lengths),
    _bound_claim(rows),
    _serial_claim(rows),
  ]


def _setting(rate: str) -> str:
  return (
    f'Gaussian features in {DIMENSION} dimensions, eigenvalues '
    f'{SPECTRUM.max():g} to {SPECTRUM.min():g}, label noise of variance '
    f'{NOISE:g}; {STEPS} steps, tail from step {FIRST}, last iterate after '
    f'{FIRST} steps; {rate}; independent copies per seed: '
    + ', '.join(f'{c} for b = {b}' for b, c in COPIES.items())
    + '.'
  )


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
    note='The exact recursion is judged, which simulated runs follow; its '
    'variance is divided by N, so that the exponent is the same for all N. The '
    'theorem bounds the variance by a multiple of 1/b. At the larger '
    'rate, half of the largest for b = 1, it falls faster, because the noise '
    'of the features adds to the variance of small batches.',
  )


def exact_exponent(rate: float, n: str) -> float:
  """Return the exponent of b of the exact variance of the tail average."""
  exact = [
    runs.exact_risks(rate, b, FIRST)[n]['tail']['variance'] for b in BATCHES
  ]
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
    note='It holds for the mean of any independent errors of mean zero. So the '
    'runs check that the replicas are independent.',
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


def _serial_claim(rows: Sequence[Mapping[str, Any]]) -> Claim:
  limit = 1 + (SPECTRUM.sum() + 2 * SPECTRUM.max()) / SPECTRUM.max()
  limit = round(float(limit), 6)  # b_thresh itself is one of the batch sizes
  taken = {r['batch_size']: np.array(runs.serial_steps(r)) for r in rows}
  gain = {b: taken[1] / own / b for b, own in taken.items()}
  steps, share = 'serial steps', 'speedup over one example, relative to b'
  # One example is left out because its ratio is 1 by definition.
  small = [f'b = {b}' for b in BATCHES if 1 < b <= limit]
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
    note='Almost linearly: at least 0.7 b. Checked up to b_thresh: '
    f'{", ".join(small)}; beyond it: {", ".join(large)}. At b_thresh, the '
    'largest rate is half of the linear one. Earlier rules stopped at b = 2 '
    'and at b = 8, with the verdict yes.',
  )
