"""T18: dropout and dither with a mask for each replica, or a shared one."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from experiments.papers import images
from experiments.papers.claims import OURS, STATED, Claim
from experiments.papers.conditions import (
  All,
  Ref,
  at_least,
  below,
  every,
  some,
)
from experiments.papers.quantities import by_case
from experiments.papers.rules import Rule
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data import values
from prsgd_jax.engine import many_runs
from prsgd_jax.engine.training import StepKeys

SEEDS = (0, 1, 2, 3, 4)
N, HIDDEN, NUM_TRAIN = 8, 64, 300
NUM_STEPS, PERIOD = 4000, 16
RATES = (0.02, 0.06)
# Half the width of the uniform noise on the inputs, which have a standard
# deviation of 1, and the probability that a hidden unit is dropped.
DITHER, DROPOUT = 1.0, 0.5
# Regularizer -> its two strengths. All are trained by one program.
REGULARIZERS = {
  'none': (0.0, 0.0),
  'dither': (DITHER, 0.0),
  'dropout': (0.0, DROPOUT),
  'both': (DITHER, DROPOUT),
}
REGULARIZED = tuple(REGULARIZERS)[1:]


class Method(NamedTuple):
  """How the replicas share examples and gradients.

  Attributes:
    make: learning rate -> algorithm.
    num_replicas: N.
    own_examples: whether every replica draws its own example.
  """

  make: Callable[[Any], pr.base.ReplicaTransformation]
  num_replicas: int
  own_examples: bool


METHODS = {
  'shared mask': Method(lambda r: pr.ssgd(optax.sgd(r)), 1, False),
  'own masks, averaged in every step': Method(
    lambda r: pr.ssgd(optax.sgd(r)), N, False
  ),
  f'own masks, averaged every {PERIOD} steps': Method(
    lambda r: pr.k_avg(optax.sgd(r), period=PERIOD), N, False
  ),
  'own masks, averaged once': Method(
    lambda r: pr.one_shot_averaging(optax.sgd(r), num_steps=NUM_STEPS),
    N,
    False,
  ),
  'batch SGD': Method(lambda r: pr.ssgd(optax.sgd(r)), N, True),
}
SHARED, PARALLEL, ROUNDS, ONCE, BATCH = METHODS
# Batch SGD after as many epochs as the other methods, which take one example.
POINTS = N


def measure(setting: Setting) -> Outcome:
  """Train every method; it has all regularizers at once."""
  train, test = images.load(setting, 'digits', NUM_TRAIN)
  errors = {name: _errors(train, test, name) for name in METHODS}
  rows = {
    name: {
      regularizer: _best(found[..., -1, r])
      for r, regularizer in enumerate(REGULARIZERS)
    }
    for name, found in errors.items()
  }
  epochs = {
    regularizer: _best(errors[BATCH][..., 0, r])
    for r, regularizer in enumerate(REGULARIZERS)
  }
  claims = [
    _alone_claim(rows),
    _parallel_claim(rows),
    _batch_claim(rows, epochs),
    _both_claim(rows),
    _period_claim(rows),
  ]
  return Outcome(claims, {'rows': rows, 'epochs': epochs}, SEEDS)


def loss(
  params: Any, batch: Any, key: jax.Array, strengths: jax.Array
) -> jax.Array:
  """Return the loss of one example with dither and dropout, nats."""
  dither, dropout = strengths
  noise_key, mask_key = jax.random.split(key)
  image = batch['image']
  noise = jax.random.uniform(noise_key, image.shape, minval=-1, maxval=1)
  first, last = params['Dense_0'], params['Dense_1']
  hidden = jax.nn.relu(
    (image + dither * noise) @ first['kernel'] + first['bias']
  )
  kept = jax.random.uniform(mask_key, hidden.shape) >= dropout
  hidden *= kept / (1 - dropout)
  logits = hidden @ last['kernel'] + last['bias']
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])


def keys_of(
  own_examples: bool, root: jax.Array, step: jax.Array, index: jax.Array
) -> StepKeys:
  """Return keys of own masks, and of own examples or a shared one."""
  examples, masks, rest = jax.random.split(jax.random.fold_in(root, step), 3)

  def of(key: jax.Array, where: jax.Array) -> jax.Array:
    return jax.vmap(functools.partial(jax.random.fold_in, key))(where)

  return StepKeys(
    batch=of(examples, index if own_examples else 0 * index),
    stage=of(rest, index),
    loss=of(masks, index),
    renewal=of(rest, index),
    shared=rest,
  )


def _errors(
  train: images.Examples, test: images.Examples, name: str
) -> np.ndarray:
  """Return test errors, % [rates, seeds, points, regularizers]."""
  method, network = METHODS[name], images.Network((HIDDEN,))
  strengths = jnp.array(list(REGULARIZERS.values()))

  def own_loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    # The sum over models that share nothing, so that one program trains all.
    losses = jax.vmap(loss, in_axes=(0, None, None, 0))(
      params, batch, key, strengths
    )
    return losses.sum(), (model_state, {})

  def draw(data: Any, step: Any, replica: Any, key: jax.Array) -> Any:
    del step, replica
    return data.rows(jax.random.randint(key, (), 0, len(data.label)))

  def start(key: jax.Array) -> Any:
    params = network.start(train)(key)
    return jax.tree.map(lambda x: jnp.stack([x] * len(REGULARIZERS)), params)

  def observe(params: Any) -> jax.Array:
    mean, batch = images.mean_of(params), test.rows(slice(None))
    return 100 * (1 - jax.vmap(lambda p: network.accuracy(p, batch))(mean))

  found: np.ndarray = many_runs.map_runs(
    method.make,
    RATES,
    SEEDS,
    loss_fn=own_loss,
    data=values.drawn(train, draw),
    start=start,
    num_replicas=method.num_replicas,
    num_steps=NUM_STEPS,
    observe=observe,
    every=NUM_STEPS // POINTS,
    keys_fn=functools.partial(keys_of, method.own_examples),
  )
  return found


def _best(errors: np.ndarray) -> dict[str, Any]:
  """Return the errors at the best rate: [rates, seeds]."""
  best = int(errors.mean(axis=1).argmin())
  return {'rate': RATES[best], 'error': errors[best].tolist()}


def _setting() -> str:
  return (
    f'MLP 64-{HIDDEN}-10 on {NUM_TRAIN} digits, {NUM_STEPS} steps of one '
    f'example, {N} replicas that all take this example; uniform noise up to '
    f'{DITHER:g} on the inputs, hidden units dropped with probability '
    f'{DROPOUT:g}; strengths not tuned; each at its best rate of '
    f'{", ".join(map(str, RATES))} by the test error. With one shared mask, '
    'all replicas are equal, with and without averages. Only the abstract of '
    'the paper was read.'
  )


def _shown(rows: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
  return {
    f'error, {name}': by_case(
      {reg: row['error'] for reg, row in rows[name].items()}, '%'
    )
    for name in names
  }


def _alone_claim(rows: Mapping[str, Any]) -> Claim:
  error = f'error, {SHARED}'
  fails = at_least(error, Ref(error, 'none'))
  return Claim(
    text='Without averages over masks, dropout and dither fail to regularize.',
    source=STATED,
    measured=_shown(rows, [SHARED]),
    rule=Rule(every(fails, REGULARIZED), some(fails, REGULARIZED)),
    setting=_setting(),
  )


def _parallel_claim(rows: Mapping[str, Any]) -> Claim:
  shared, own = (f'error, {name}' for name in (SHARED, PARALLEL))
  plain = below(own, Ref(own, 'none'))
  return Claim(
    text='Parallel dropout and dither, with a mask for each replica and the '
    'mean of their gradients, regularize without batches of examples.',
    source=STATED,
    measured=_shown(rows, [SHARED, PARALLEL]),
    rule=Rule(
      every(All((below(own, Ref(shared), seeds='each'), plain)), REGULARIZED),
      some(All((below(own, Ref(shared)), plain)), REGULARIZED),
    ),
    setting=_setting(),
  )


def _batch_claim(rows: Mapping[str, Any], epochs: Mapping[str, Any]) -> Claim:
  own, steps = f'error, {PARALLEL}', f'error, {BATCH}, equal steps'
  equal = f'error, {BATCH}, equal epochs'
  measured = _shown(rows, [PARALLEL])
  for title, found in ((equal, epochs), (steps, rows[BATCH])):
    measured[title] = by_case(
      {reg: row['error'] for reg, row in found.items()}, '%'
    )
  return Claim(
    text='Parallel regularization of single examples is better than '
    'regularized batch SGD.',
    source=STATED + '; at equal epochs, which is our reading',
    measured=measured,
    rule=Rule(
      every(below(own, Ref(equal), seeds='each'), REGULARIZED),
      some(below(own, Ref(equal)), REGULARIZED),
    ),
    setting=f'Batches of {N} examples, each with a mask. Equal epochs: an '
    f'eighth of the steps. {_setting()}',
  )


def _both_claim(rows: Mapping[str, Any]) -> Claim:
  own = f'error, {PARALLEL}'
  better = [
    below(Ref(own, 'both'), Ref(own, one)) for one in ('dither', 'dropout')
  ]
  return Claim(
    text='Dither and dropout are complementary: both are better than each.',
    source=STATED,
    measured=_shown(rows, [PARALLEL]),
    rule=Rule(All(tuple(better)), better[0]),
    setting=_setting(),
  )


def _period_claim(rows: Mapping[str, Any]) -> Claim:
  often, rare, once = (f'error, {n}' for n in (PARALLEL, ROUNDS, ONCE))
  near = below(rare, Ref(often, times=1.1))
  helps = below(once, Ref(f'error, {SHARED}'))
  return Claim(
    text='Rare averages of the models keep the gain of masks of their own.',
    source=OURS,
    measured=_shown(rows, [SHARED, PARALLEL, ROUNDS, ONCE]),
    rule=Rule(every(All((near, helps)), REGULARIZED), some(near, REGULARIZED)),
    setting=_setting(),
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the test error of every method by regularizer."""
  figure.set_size_inches(drawing.WIDTH, 4)
  axis = figure.subplots()
  places = np.arange(len(REGULARIZERS))
  groups = {
    **data['rows'],
    f'{BATCH}, equal epochs': data['epochs'],
  }
  looks = styles.categories(list(groups))
  width = 0.8 / len(groups)
  for i, (name, row) in enumerate(groups.items()):
    shift = (i - (len(groups) - 1) / 2) * width
    errors = [row[regularizer]['error'] for regularizer in REGULARIZERS]
    style = looks[name]._replace(linestyle='none')
    drawing.spread(axis, places + shift, errors, style, label=name)
  axis.set_xticks(places, list(REGULARIZERS))
  axis.set(xlabel='regularizer', ylabel='test error, %')
  drawing.legend_below(figure)


TARGET = Target(
  name='t18_parallel_dropout',
  title='Parallel dropout and dither: own masks against a shared one',
  paper='Simpson 2015 (arXiv 1508.07130)',
  measure=measure,
  draw=draw,
)
