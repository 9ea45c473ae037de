"""On the CPU: softmax regression on 4000 images of MNIST, 20 clients."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import images, speed
from experiments.papers.claims import STATED, Claim
from experiments.papers.conditions import Ref, above, every
from experiments.papers.quantities import by_case
from experiments.papers.rules import Rule
from experiments.papers.simulation import simulate
from experiments.papers.t11_fedavg import judging
from experiments.papers.target import Outcome, Setting
from experiments.tools import drawing, styles
import prsgd_jax as pr

CLIENTS, OWN = 20, 200  # K and n_k: n = K n_k
PARTICIPATION = 0.25
SHARDS = 2  # per client with unlike data, each of one class
SEEDS = (0, 1, 2, 3, 4)
# Each about 3 times the one before; every E and B has the best of them.
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ACCURACY = 0.85


class Work(NamedTuple):
  """The work of a client in a round, and the number of rounds.

  Attributes:
    epochs: E.
    batch: B; all examples of a client are the paper's infinity.
    rounds: of the run.
  """

  epochs: int
  batch: int
  rounds: int

  @property
  def updates(self) -> int:
    """u = E n / (K B)."""
    return self.epochs * OWN // self.batch


# The first is FedSGD.
WORKS = (
  Work(1, OWN, 200),
  Work(4, OWN, 80),
  Work(1, 20, 60),
  Work(2, 10, 40),
)
PARTITIONS = ('like', 'unlike')
# Other runs, done once.
TRIED = {
  'like': '',
  'unlike': 'With C = 0.5, 10 clients in a round, the rounds do not always '
  'fall either: 16.7, 12.1, 20.8 and 18.6.',
}


def measure(setting: Setting) -> Outcome:
  """Train with all E and B, on clients with like and with unlike data."""
  train, test = images.load(setting, 'mnist', CLIENTS * OWN)
  orders = {
    'like': np.arange(CLIENTS * OWN),
    'unlike': unlike_order(np.asarray(train.label), CLIENTS),
  }
  found = {
    name: [
      _train(images.Examples(*(x[order] for x in train)), test, work)
      for work in WORKS
    ]
    for name, order in orders.items()
  }
  works = [{**work._asdict(), 'updates': work.updates} for work in WORKS]
  data = {'rates': RATES, 'target': ACCURACY, 'works': works, 'found': found}
  claims = [*(_rounds_claim(found, name) for name in PARTITIONS), _gain(found)]
  return Outcome(claims, data, SEEDS)


def unlike_order(labels: np.ndarray, num_clients: int) -> np.ndarray:
  """Return the places of the examples, client after client.

  Examples are sorted by label and cut into shards. Every client gets `SHARDS`
  random shards, and has its examples in random order.
  """
  rng = np.random.default_rng(0)
  shards = np.split(np.argsort(labels, kind='stable'), num_clients * SHARDS)
  dealt = np.array(shards)[rng.permutation(len(shards))]
  own = dealt.reshape(num_clients, -1)
  return rng.permuted(own, axis=1).ravel()


def _train(
  examples: images.Examples, test: images.Examples, work: Work
) -> dict[str, Any]:
  """Measure rounds to the accuracy for all rates and seeds; keep one curve."""
  network = images.Network()
  batches = OWN // work.batch
  held = test.rows(slice(2000))

  def loss_fn(
    params: Any, step: jax.Array, replica: jax.Array, key: jax.Array
  ) -> jax.Array:
    del key
    # The order of a client's examples is the same in every epoch.
    first = replica * OWN + step % batches * work.batch
    return network.loss(params, examples.rows(first + jnp.arange(work.batch)))

  accuracy = simulate(
    lambda rate: pr.fedavg(
      optax.sgd(rate), period=work.updates, participation=PARTICIPATION
    ),
    RATES,
    SEEDS,
    loss_fn=loss_fn,
    start=network.start(examples),
    num_replicas=CLIENTS,
    num_steps=work.rounds * work.updates,
    observe=lambda x: network.accuracy(images.mean_of(x), held),
    every=work.updates,
  )
  rounds = np.arange(1, work.rounds + 1)
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
  edges = [
    case for case, own in cases.items() if own['best'] in (0, len(RATES) - 1)
  ]
  return Claim(
    text=f'Rounds to a test accuracy fall with u = E n / (K B) ({name} data).',
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
    f'C = {PARTICIPATION:g}. {judging.SETTING}'
    + (f' At the edge of the rates: {"; ".join(edges)}.' if edges else ''),
    note=TRIED[name],
  )


def _case(work: Work) -> str:
  return f'u = {work.updates} (E = {work.epochs}, B = {work.batch})'


def _gain(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Claim:
  names = {name: f'gain with {name} data' for name in PARTITIONS}
  like, unlike = names.values()
  largest = 'largest gain'
  gains = {}
  for name in PARTITIONS:
    means = np.array([_reached(own).mean() for own in found[name]])
    gains[name] = means[0] / means[1:]
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
        {f'{name} data': own.max() for name, own in gains.items()}, 'times'
      ),
    },
    rule=Rule(
      every(above(like, Ref(unlike))),
      above(Ref(largest, 'like data'), Ref(largest, 'unlike data')),
    ),
    setting='The gain is how many times fewer rounds than FedSGD are needed. '
    f'A client with unlike data has {SHARDS} shards of sorted labels.',
  )


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
  for name, dash in zip(PARTITIONS, ('-', '--'), strict=True):
    reached = np.array([_reached(own) for own in data['found'][name]])
    shown = np.where(np.isfinite(reached), reached, np.nan)
    style = styles.method('fedavg')._replace(linestyle=dash)
    label = f'{name} data'
    hollow = dash != '-'
    drawing.spread(last, updates, shown, style, label=label, hollow=hollow)
  last.set_xscale('log')
  drawing.log(last, 'y')
  last.set_xlabel('u = E n / (K B), steps in a round')
  last.set_ylabel(f'rounds to {data["target"]:.0%}')
  drawing.legend_below(figure)
