"""T19: averages every few mini-batches, with Kaldi's natural gradient."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.gallery import comparing
from experiments.papers import images, speed
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Either,
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
N, BATCH, HIDDEN, NUM_TRAIN, NUM_TEST = 8, 16, (32, 32), 4096, 2000
NUM_STEPS, EVERY = 320, 8
# A power of two between two steps; the paper multiplies the rate by N.
RATES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
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
  evaluate = evaluators(train, test)
  rows = {
    local: {kind: _run(train, evaluate, local, kind) for kind in PERIODS}
    for local in LOCAL
  }
  claims = [
    _single_claim(rows),
    *(_few_claim(rows, local) for local in LOCAL),
    _rare_claim(rows),
    _benefit_claim(rows),
    _speedup_claim(rows),
  ]
  return Outcome(claims, {'rows': rows}, SEEDS)


class Evaluators(NamedTuple):
  """Functions of parameters [A, B, ...] with results [A, B].

  Attributes:
    loss: training loss of all examples, nats.
    accuracy: fraction of correct labels of test images.
  """

  loss: Callable[[Any], np.ndarray]
  accuracy: Callable[[Any], np.ndarray]


def evaluators(train: images.Examples, test: images.Examples) -> Evaluators:
  """Return the functions that evaluate all runs, so that each compiles once."""
  network = images.Network(HIDDEN)

  def over(
    fn: Callable[[Any, dict[str, jax.Array]], jax.Array],
    batch: dict[str, jax.Array],
  ) -> Callable[[Any], np.ndarray]:
    mapped = jax.jit(
      lambda params, batch: jax.lax.map(
        jax.vmap(lambda p: fn(p, batch)), params
      )
    )
    return lambda params: np.array(mapped(params, batch))

  return Evaluators(
    over(network.loss, train.rows(slice(None))),
    over(network.accuracy, test.rows(slice(NUM_TEST))),
  )


def _run(
  train: images.Examples, evaluate: Evaluators, local: str, kind: str
) -> dict[str, Any]:
  """Return the curves of the best rate, by seed."""
  network = images.Network(HIDDEN)

  def loss_fn(p: Any, step: Any, replica: Any, key: jax.Array) -> jax.Array:
    del step, replica
    return network.loss(p, train.draw(key, BATCH))

  found = simulate(
    lambda rate: LOCAL[local](rate, PERIODS[kind]),
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(train),
    num_replicas=1 if kind == 'one replica' else N,
    num_steps=NUM_STEPS,
    # Evaluated afterwards, because the losses of all examples along all runs
    # take longer than the training.
    observe=images.mean_of,
    every=EVERY,
  )
  ends = evaluate.loss(jax.tree.map(lambda x: x[:, :, -1], found)).mean(axis=1)
  # NaN, of a run that diverged, is no minimum.
  best = int(np.nan_to_num(ends, nan=np.inf).argmin())
  own = jax.tree.map(lambda x: x[best], found)
  last = jax.tree.map(lambda x: x[:, -1:], own)
  return {
    'rate': RATES[best],
    'loss': evaluate.loss(own).tolist(),
    'accuracy': (100 * evaluate.accuracy(last)[:, 0]).tolist(),
    'loss by rate': ends.tolist(),
  }


def _ends(row: Mapping[str, Any]) -> np.ndarray:
  return np.array(row['loss'])[:, -1]


def _setting() -> str:
  widths = '-'.join(map(str, HIDDEN))
  return (
    f'MLP 196-{widths}-10 on {NUM_TRAIN} images of MNIST at 14 x 14; {N} '
    f'replicas with batches of {BATCH}, {NUM_STEPS} steps; natural gradient of '
    f'rank {RANK}; steps limited to a norm of 2; each at its best of the rates '
    f'{", ".join(map(str, RATES))} by the training loss at the end. Accuracy '
    f'on {NUM_TEST} test images.'
  )


def _edges(
  rows: Mapping[str, Any], kinds: Sequence[str] = tuple(PERIODS),
  locals_: Sequence[str] = tuple(LOCAL),
) -> str:  # fmt: skip
  """Return a remark on the best rates at the edge of the grid."""
  places = {
    f'{local} ({TOLD[kind]})': RATES.index(rows[local][kind]['rate'])
    for local in locals_
    for kind in kinds
  }
  return comparing.edge_note(places, len(RATES))


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
    note=_edges(rows, ['one replica']),
  )


def _few_claim(rows: Mapping[str, Any], local: str) -> Claim:
  often = _ends(rows[local]['every step'])
  relative = 'final loss relative to an average at every step'
  cases = {TOLD[k]: _ends(rows[local][k]) / often for k in ('few', 'rare')}
  few, rare = cases
  flat = at_most(Ref(relative, few), FLAT)
  return Claim(
    text=f'{local}: averages every few mini-batches train as well as averages '
    'in every step; rare ones do not.',
    source=f'{OURS}: {SWITCHBOARD} averages every few mini-batches; its '
    'abstract compares no periods',
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
    note=_edges(rows, locals_=[local]),
  )


def _lost(
  rows: Mapping[str, Any], kind: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Return nats and accuracy lost against averages at every step."""
  nats = {
    local: _ends(own[kind]) - _ends(own['every step'])
    for local, own in rows.items()
  }
  points = {
    local: np.array(own['every step']['accuracy'])
    - np.array(own[kind]['accuracy'])
    for local, own in rows.items()
  }
  return nats, points


def _rare_claim(rows: Mapping[str, Any]) -> Claim:
  nats, points = _lost(rows, 'rare')
  loss, accuracy = 'training loss added by rare averages', 'test accuracy lost'
  less = [below(Ref(n, 'NG-SGD'), Ref(n, 'SGD')) for n in (loss, accuracy)]
  return Claim(
    text='The natural gradient lets rare averages work: it loses less than SGD '
    'where averages are rare.',
    source=f'{STATED}, {KALDI}',
    measured={
      loss: by_case(nats, 'nats'),
      accuracy: by_case(points, 'points'),
      'final training loss, rare averages': by_case(
        {local: _ends(rows[local]['rare']) for local in LOCAL}, 'nats'
      ),
      'final loss relative to an average at every step': by_case(
        {
          local: _ends(rows[local]['rare']) / _ends(rows[local]['every step'])
          for local in LOCAL
        }
      ),
    },
    rule=Rule(
      All(tuple(one._replace(seeds='each') for one in less)),
      Either(tuple(less)),
    ),
    setting=f'Rare averages: every {RARE} steps, against an average at every '
    f'step. {_setting()}',
    note='Differences are judged. The ratio of the losses is shown only, '
    'because it divides by the loss with an average at every step, which '
    'differs between the methods: a small one turns a small loss into a large '
    'ratio. An earlier rule judged this ratio, with the verdict no, as it '
    f'would today. {_edges(rows, ["every step", "rare"])}',
  )


def _benefit_claim(rows: Mapping[str, Any]) -> Claim:
  loss = 'final training loss'
  less = below(Ref(loss, 'NG-SGD'), Ref(loss, 'SGD'))
  return Claim(
    text='NG-SGD benefits training with averages every few mini-batches.',
    source=f'{STATED}, {SWITCHBOARD}',
    measured={
      loss: by_case(
        {local: _ends(rows[local]['few']) for local in LOCAL}, 'nats'
      ),
      'test accuracy': by_case(
        {local: rows[local]['few']['accuracy'] for local in LOCAL}, '%'
      ),
    },
    rule=Rule(less._replace(seeds='each'), less),
    setting=f'An average every {FEW} steps. {_setting()}',
    note=_edges(rows, ['few']),
  )


def speedups(rows: Mapping[str, Any], local: str, kind: str) -> Measurement:
  """Return how many times fewer steps N replicas take, by seed.

  They train to the final loss of one replica.
  """
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
    source=f'{STATED}, {SWITCHBOARD}: 9.3 times with 16 GPUs, with little '
    f'loss of accuracy; half of {N} is our reading',
    measured={name: by_case(cases), 'replicas': number(N)},
    rule=Rule(
      every(at_least(name, Ref('replicas', '', 0.5)), few),
      every(at_least(name, 2), few),
    ),
    setting='Steps of one replica to its final loss over the steps of '
    f'{N} replicas to this loss; no time for communication. {_setting()}',
    note=_edges(rows),
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
  paper=f'Povey, Zhang, Khudanpur 2015 ({KALDI}); Su, Chen 2015 '
  f'({SWITCHBOARD})',
  measure=measure,
  draw=draw,
)
