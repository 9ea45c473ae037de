"""On the CPU: softmax regression on 4000 images of MNIST, 20 clients."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import images, speed
from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import Ref, above, every
from experiments.papers.quantities import Measurement, by_case, of_seeds
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.t11_fedavg import judging
from experiments.papers.target import Outcome, Setting
from experiments.tools import drawing, styles
import prsgd_jax as pr

CLIENTS, OWN = 20, 200  # K and n_k: n = K n_k
SHARDS = 2  # per client, each of one class with unlike data
SEEDS = (0, 1, 2, 3, 4)
# Each about 3 times the one before; every E and B has the best of them.
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ACCURACY = 0.85


class Work(NamedTuple):
  """The work of a client in a round.

  Attributes:
    epochs: E.
    batch: B; all examples of a client are the paper's infinity.
  """

  epochs: int
  batch: int

  @property
  def updates(self) -> int:
    """u = E n / (K B)."""
    return self.epochs * OWN // self.batch


# The first is FedSGD.
WORKS = (Work(1, OWN), Work(4, OWN), Work(1, 20), Work(2, 10))


class Case(NamedTuple):
  """Data and clients of a table of rounds.

  Attributes:
    like: whether all clients have data of all classes.
    participation: C.
    rounds: rounds of the run of each work, about twice those to the accuracy.
  """

  like: bool
  participation: float
  rounds: tuple[int, ...]


CASES = {
  'like': Case(like=True, participation=0.25, rounds=(60, 20, 12, 8)),
  'unlike': Case(like=False, participation=0.25, rounds=(100, 60, 60, 60)),
  'unlike, C = 0.5': Case(
    like=False, participation=0.5, rounds=(60, 40, 40, 40)
  ),
}
PARTITIONS = ('like', 'unlike')


def measure(setting: Setting) -> Outcome:
  """Train with all E and B, on clients with like and with unlike data."""
  train, test = images.load(setting, 'mnist', CLIENTS * OWN)
  found = {
    name: [
      _train(train, test, case, work, rounds)
      for work, rounds in zip(WORKS, case.rounds, strict=True)
    ]
    for name, case in CASES.items()
  }
  works = [{**work._asdict(), 'updates': work.updates} for work in WORKS]
  data = {'rates': RATES, 'target': ACCURACY, 'works': works, 'found': found}
  claims = [*(_rounds_claim(found, name) for name in CASES), _gain(found)]
  return Outcome(claims, data, SEEDS)


def in_shards(labels: np.ndarray, *, like: bool) -> np.ndarray:
  """Return the places of the examples of each shard, int[K SHARDS, ...].

  Args:
    labels: the classes, int[n].
    like: whether a shard has all classes; otherwise the shards are cut from the
      examples sorted by label.
  """
  order = np.argsort(labels, kind='stable')
  if like:
    order = np.arange(len(labels))
  return order.reshape(CLIENTS * SHARDS, -1)


def deal(key: jax.Array) -> jax.Array:
  """Deal the shards to the clients at random, float[K SHARDS].

  They are floats because they are parameters of a run, which no gradient
  changes. So runs of one compiled program have different clients.
  """
  return jax.random.permutation(key, CLIENTS * SHARDS).astype(float)


def own_order() -> np.ndarray:
  """Return a random order of the examples of each client, int[K, n_k]."""
  rng = np.random.default_rng(0)
  return rng.permuted(np.tile(np.arange(OWN), (CLIENTS, 1)), axis=1)


def places(
  shards: jax.Array, dealt: jax.Array, client: jax.Array, own: jax.Array
) -> jax.Array:
  """Return the places of some examples of a client.

  Args:
    shards: as `in_shards` returns.
    dealt: as `deal` returns.
    client: number of the client.
    own: numbers of its examples, int[B], in [0, n_k).
  """
  size = shards.shape[1]
  shard = dealt[client * SHARDS + own // size]
  return shards[jnp.round(shard).astype(int), own % size]


def _train(
  examples: images.Examples,
  test: images.Examples,
  case: Case,
  work: Work,
  num_rounds: int,
) -> dict[str, Any]:
  """Measure rounds to the accuracy for all rates and seeds; keep one curve."""
  network = images.Network()
  batches = OWN // work.batch
  held = test.rows(slice(2000))
  shards = jnp.asarray(in_shards(np.asarray(examples.label), like=case.like))
  order = jnp.asarray(own_order())

  def start(key: jax.Array) -> dict[str, Any]:
    one, other = jax.random.split(key)
    return {'model': network.start(examples)(one), 'dealt': deal(other)}

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del key
    # The order of a client's examples is the same in every epoch.
    first = step % batches * work.batch
    own = lax.dynamic_slice(order[replica], (first,), (work.batch,))
    dealt = lax.stop_gradient(params['dealt'])
    rows = examples.rows(places(shards, dealt, replica, own))
    return network.loss(params['model'], rows)

  accuracy = simulate(
    lambda rate: pr.fedavg(
      optax.sgd(rate), period=work.updates, participation=case.participation
    ),
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=start,
    num_replicas=CLIENTS,
    num_steps=num_rounds * work.updates,
    observe=lambda x: network.accuracy(images.mean_of(x['model']), held),
    every=work.updates,
  )
  rounds = np.arange(1, num_rounds + 1)
  # As in the paper: the curve made monotone, with lines between the rounds.
  reached = np.array(
    [
      [speed.when_reached(rounds, -curve, -ACCURACY) for curve in own]
      for own in accuracy
    ]
  )
  best = int(reached.mean(axis=1).argmin())
  return {
    # JSON has no infinity.
    'reached': [
      [float(r) if np.isfinite(r) else None for r in own] for own in reached
    ],
    'best': best,
    'curve': accuracy[best].tolist(),
  }


def _reached(found: Mapping[str, Any]) -> np.ndarray:
  """Return the rounds by seed at the best rate, infinity if not reached."""
  own = found['reached'][found['best']]
  return np.array([np.inf if r is None else r for r in own])


def _rounds_claim(
  found: Mapping[str, Sequence[Mapping[str, Any]]], name: str
) -> Claim:
  cases = dict(zip(map(_case, WORKS), found[name], strict=True))
  rounds = f'rounds to {ACCURACY:.0%}'
  return Claim(
    text='Rounds to a test accuracy fall with u = E n / (K B) '
    f'({data_of(name)}).',
    source=STATED,
    measured={
      **judging.measured(
        rounds, {case: _reached(own) for case, own in cases.items()}
      ),
      'learning rate': by_case(
        {case: RATES[own['best']] for case, own in cases.items()}
      ),
    },
    rule=judging.rule(rounds, tuple(cases)),
    setting='The first is FedSGD. Every E and B has its best rate of '
    f'{", ".join(map(str, RATES))}. {CLIENTS} clients with {OWN} images each, '
    f'C = {CASES[name].participation:g}. Every run deals shards at random, '
    f'{SHARDS} to each client. {judging.SETTING}'
    + _remark(_edges(found[name])),
  )


def _edges(runs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Return the work whose best rate is the lowest or the highest."""
  cases = zip(map(_case, WORKS), runs, strict=True)
  return [case for case, own in cases if own['best'] in (0, len(RATES) - 1)]


def _remark(edges: Sequence[str]) -> str:
  return f' At the edge of the rates: {"; ".join(edges)}.' if edges else ''


def data_of(name: str) -> str:
  """Return a key of `CASES` in words.

  Example:
    >>> data_of('unlike, C = 0.5')
    'unlike data, C = 0.5'
  """
  kind, *rest = name.split(',')
  return ','.join([f'{kind} data', *rest])


def _case(work: Work) -> str:
  return f'u = {work.updates} (E = {work.epochs}, B = {work.batch})'


def _gain(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Claim:
  names = {name: f'gain with {name} data' for name in PARTITIONS}
  like, unlike = names.values()
  largest = 'largest gain'
  gains = {}
  edges = []
  for name in PARTITIONS:
    first, *others = map(_reached, found[name])
    edges += [f'{case} with {name} data' for case in _edges(found[name])]
    gains[name] = [_gain_over(first, own) for own in others]
  return Claim(
    text='The gain over FedSGD is larger with like than with unlike data.',
    source=STATED,
    measured={
      **{
        names[name]: by_case(
          dict(zip(map(_case, WORKS[1:]), own, strict=True)), 'times'
        )
        for name, own in gains.items()
      },
      largest: by_case(
        {f'{name} data': _largest(own) for name, own in gains.items()}, 'times'
      ),
    },
    rule=Rule(
      every(above(like, Ref(unlike))),
      above(Ref(largest, 'like data'), Ref(largest, 'unlike data')),
    ),
    setting='The gain is how many times fewer rounds than FedSGD are needed. '
    f'A client with unlike data has {SHARDS} shards of sorted labels.'
    + _remark(edges),
  )


def _gain_over(first: np.ndarray, own: np.ndarray) -> Measurement:
  """Return the ratio of the mean rounds, with the ratio of each seed."""
  return of_seeds(first / own, first.mean() / own.mean())


def _largest(gains: Sequence[Measurement]) -> Measurement:
  """Return the largest of the gains, and the largest one of each seed."""
  seeds = np.max([gain.seeds for gain in gains], axis=0)
  return of_seeds(seeds, max(gain.value for gain in gains))


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the error against rounds, and rounds against u."""
  figure.set_size_inches(drawing.WIDTH, 4)
  *panels, last = figure.subplots(1, 3)
  updates = [work['updates'] for work in data['works']]
  # More work between averages is lighter.
  looks = styles.variants('fedavg', sorted(updates))
  for axis, name in zip(panels, PARTITIONS, strict=True):
    for work, own in zip(data['works'], data['found'][name], strict=True):
      best = np.maximum.accumulate(own['curve'], axis=1)
      rounds = np.arange(1, best.shape[1] + 1)
      label = f'E = {work["epochs"]}, B = {work["batch"]}'
      errors = drawing.error_percent(best)
      drawing.seeds(axis, rounds, errors, looks[work['updates']], label=label)
    target = 100 * (1 - data['target'])
    axis.axhline(target, color='k', ls=':', label='target')
    axis.set_xscale('log')
    drawing.log(axis, 'y')
    axis.set_xlabel('rounds')
    axis.set_ylabel('lowest test error so far, %')
    axis.set_title(f'{name} data')
  limits = np.array([axis.get_ylim() for axis in panels])
  for axis in panels:
    axis.set_ylim(limits.min(), limits.max())
  for name, dash in zip(CASES, ('-', '--', ':'), strict=True):
    reached = np.array([_reached(own) for own in data['found'][name]])
    shown = np.where(np.isfinite(reached), reached, np.nan)
    style = styles.method('fedavg')._replace(linestyle=dash)
    label = data_of(name)
    hollow = dash != '-'
    drawing.spread(last, updates, shown, style, label=label, hollow=hollow)
  last.set_xscale('log')
  drawing.log(last, 'y')
  last.set_xlabel('u = E n / (K B), steps in a round')
  last.set_ylabel(f'rounds to {data["target"]:.0%}')
  drawing.legend_below(figure)
