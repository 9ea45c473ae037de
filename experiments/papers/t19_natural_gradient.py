"""T19: averages every few mini-batches, with Kaldi's natural gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import images, speed
from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  above,
  at_least,
  at_most,
  below,
  every,
)
from experiments.papers.quantities import Measurement, by_case, number
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr

KALDI, SWITCHBOARD = 'arXiv 1410.7455', 'arXiv 1507.01239'

SEEDS = (0, 1, 2)
N, BATCH, HIDDEN, NUM_TRAIN = 8, 16, (32, 32), 4096
NUM_STEPS, EVERY = 320, 8
# A power of two between two steps; the paper multiplies the rate by N.
RATES = (0.1, 0.2, 0.4, 0.8)
RANK, FEW, RARE = 4, 4, 80
# Largest loss relative to an average in every step that counts as flat.
FLAT = 1.25


def natural(rate: Any, period: int) -> pr.base.ReplicaTransformation:
  """Return Kaldi's training with the limit of the step that is its default."""
  return pr.natural_gradient_averaging(
    optax.sgd(rate), period=period, rank=RANK
  )


def plain(rate: Any, period: int) -> pr.base.ReplicaTransformation:
  """Return averages of SGD with the same limit of the step."""
  tx = optax.chain(optax.sgd(rate), pr.optimizers.limit_change(2.0))
  return pr.k_avg(tx, period=period)


LOCAL = {'SGD': plain, 'NG-SGD': natural}
# Periods of the runs with N replicas, and the run of one replica.
PERIODS = {'one replica': 1, 'every step': 1, 'few': FEW, 'rare': RARE}
LOOKS = {
  'SGD': styles.variants('k_avg', tuple(PERIODS)),
  'NG-SGD': styles.variants('natural_gradient_averaging', tuple(PERIODS)),
}
TOLD = {
  'one replica': 'one replica',
  'every step': 'average at every step',
  'few': f'average every {FEW} steps',
  'rare': f'average every {RARE} steps',
}


def measure(setting: Setting) -> Outcome:
  """Train with and without natural gradient, and with and without averages."""
  train, test = images.load(setting, 'mnist', NUM_TRAIN)
  rows = {
    local: {kind: _run(train, test, local, kind) for kind in PERIODS}
    for local in LOCAL
  }
  claims = [
    _single_claim(rows),
    *(_few_claim(rows, local) for local in LOCAL),
    _benefit_claim(rows),
    _speedup_claim(rows),
  ]
  return Outcome(claims, {'rows': rows}, SEEDS)


def _run(
  train: images.Examples, test: images.Examples, local: str, kind: str
) -> dict[str, Any]:
  """Return the curves of the best rate, by seed."""
  network = images.Network(HIDDEN)
  everything = train.rows(slice(None))

  def loss_fn(p: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    return network.loss(p, train.draw(key, BATCH))

  def observe(params: Any) -> dict[str, jax.Array]:
    mean = images.mean_of(params)
    return {
      'loss': network.loss(mean, everything),
      'accuracy': network.accuracy(mean, test.rows(slice(2000))),
    }

  found = simulate(
    lambda rate: LOCAL[local](rate, PERIODS[kind]),
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(train),
    num_replicas=1 if kind == 'one replica' else N,
    num_steps=NUM_STEPS,
    observe=observe,
    every=EVERY,
  )
  # NaN, of a run that diverged, is no minimum.
  ends = np.nan_to_num(found['loss'][..., -1].mean(axis=1), nan=np.inf)
  best = int(ends.argmin())
  return {
    'rate': RATES[best],
    'loss': found['loss'][best].tolist(),
    'accuracy': (100 * found['accuracy'][best, :, -1]).tolist(),
  }


def _ends(row: Mapping[str, Any]) -> np.ndarray:
  return np.array(row['loss'])[:, -1]


def _setting() -> str:
  widths = '-'.join(map(str, HIDDEN))
  return (
    f'MLP 196-{widths}-10 on {NUM_TRAIN} images of MNIST at 14 x 14; {N} '
    f'replicas with batches of {BATCH}, {NUM_STEPS} steps; natural gradient of '
    f'rank {RANK}; steps limited to a norm of 2; each at its best of the rates '
    f'{", ".join(map(str, RATES))} by the training loss at the end.'
  )


def _rates(rows: Mapping[str, Any], locals_: Sequence[str]) -> dict[str, float]:
  return {
    f'{local}, {TOLD[kind]}': rows[local][kind]['rate']
    for local in locals_
    for kind in PERIODS
  }


def _single_claim(rows: Mapping[str, Any]) -> Claim:
  loss = 'final training loss'
  return Claim(
    text='NG-SGD improves the convergence of SGD on a single machine.',
    source=f'{STATED}, {KALDI}',
    measured={
      loss: by_case(
        {local: _ends(rows[local]['one replica']) for local in LOCAL}, 'nats'
      ),
      'test accuracy': by_case(
        {local: rows[local]['one replica']['accuracy'] for local in LOCAL}, '%'
      ),
      'best rate': by_case(
        {local: rows[local]['one replica']['rate'] for local in LOCAL}
      ),
    },
    rule=Rule(
      below(Ref(loss, 'NG-SGD'), Ref(loss, 'SGD'), seeds='each'),
      below(Ref(loss, 'NG-SGD'), Ref(loss, 'SGD')),
    ),
    setting=_setting(),
  )


def _few_claim(rows: Mapping[str, Any], local: str) -> Claim:
  often = _ends(rows[local]['every step'])
  relative = 'final loss over that with an average at every step'
  cases = {TOLD[k]: _ends(rows[local][k]) / often for k in ('few', 'rare')}
  few, rare = cases
  flat = at_most(Ref(relative, few), FLAT)
  return Claim(
    text=f'{local}: averages every few mini-batches train as well as averages '
    'in every step; rare ones do not.',
    source=f'{STATED}, {SWITCHBOARD}',
    measured={
      relative: by_case(cases),
      'final training loss': by_case(
        {TOLD[k]: _ends(rows[local][k]) for k in PERIODS}, 'nats'
      ),
      'test accuracy': by_case(
        {TOLD[k]: rows[local][k]['accuracy'] for k in PERIODS}, '%'
      ),
      'best rate': by_case({TOLD[k]: rows[local][k]['rate'] for k in PERIODS}),
    },
    rule=Rule(
      All((flat, above(Ref(relative, rare), FLAT))),
      flat,
    ),
    setting=_setting(),
  )


def _benefit_claim(rows: Mapping[str, Any]) -> Claim:
  cost = {
    local: {
      TOLD[k]: _ends(rows[local][k]) / _ends(rows[local]['every step'])
      for k in ('few', 'rare')
    }
    for local in LOCAL
  }
  names = {local: f'{local}: loss over that of every step' for local in LOCAL}
  better = below(names['NG-SGD'], Ref(names['SGD']))
  return Claim(
    text='The natural gradient lets rare averages work: it loses less by them '
    'than SGD.',
    source=f'{STATED}, {KALDI} and {SWITCHBOARD}',
    measured={names[local]: by_case(cost[local]) for local in LOCAL},
    rule=Rule(
      every(below(names['NG-SGD'], Ref(names['SGD']), seeds='each')),
      every(better, [TOLD['rare']]),
    ),
    setting=_setting(),
  )


def speedups(rows: Mapping[str, Any], local: str, kind: str) -> Measurement:
  """Return steps of one replica to its final loss over those of N, by seed."""
  steps = EVERY * np.arange(1, NUM_STEPS // EVERY + 1)
  found = []
  pairs = zip(rows[local]['one replica']['loss'], rows[local][kind]['loss'])
  for one, many in pairs:
    least = speed.target_loss(one, 1.0)
    alone = speed.when_reached(steps, one, least)
    found.append(alone / speed.when_reached(steps, many, least))
  return Measurement(float(np.mean(found)), tuple(found))


def _speedup_claim(rows: Mapping[str, Any]) -> Claim:
  name = f'speedup of {N} replicas'
  cases = {
    f'{local}, {TOLD[kind]}': speedups(rows, local, kind)
    for local in LOCAL
    for kind in ('every step', 'few', 'rare')
  }
  few = [f'{local}, {TOLD["few"]}' for local in LOCAL]
  return Claim(
    text='Averages every few mini-batches speed up training by more than half '
    'of the number of replicas.',
    source=f'{STATED}, {SWITCHBOARD}: 9.3 times with 16 GPUs; half of {N} is '
    'our reading',
    measured={name: by_case(cases), 'replicas': number(N)},
    rule=Rule(
      every(at_least(name, Ref('replicas', '', 0.5)), few),
      every(at_least(name, 2), few),
    ),
    setting='Steps of one replica to its final loss over the steps of '
    f'{N} replicas to this loss; no time for communication. {_setting()}',
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the training loss along the runs, for both local steps."""
  figure.set_size_inches(drawing.WIDTH, 4.2)
  axes = figure.subplots(1, 2, sharey=True)
  steps = EVERY * np.arange(1, NUM_STEPS // EVERY + 1)
  for axis, (local, kinds) in zip(axes, data['rows'].items(), strict=True):
    for kind, row in kinds.items():
      label = f'{local}, {TOLD[kind]}'
      drawing.seeds(axis, steps, row['loss'], LOOKS[local][kind], label=label)
    axis.set(xlabel='steps', title=local)
    drawing.log(axis, 'y')
  axes[0].set_ylabel('training loss of the average, nats')
  drawing.legend_below(figure)


TARGET = Target(
  name='t19_natural_gradient',
  title='Averages every few mini-batches, with and without natural gradient',
  paper=f'Povey, Zhang, Khudanpur 2015 ({KALDI}); Su, Chen, Xu 2015 '
  f'({SWITCHBOARD})',
  measure=measure,
  draw=draw,
)
