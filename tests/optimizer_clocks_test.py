"""Schedules inside optimizers of optax, and replicas that sit out."""

import importlib
import inspect
import pathlib

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from optax.experimental import _aggregating as aggregating

import prsgd_jax as pr
from prsgd_jax.optimizers import optimizer_clocks

N, T = 4, 6


def rate(step):
  """A schedule that is never the same twice."""
  return 0.05 / (1.0 + step)


def every_other(step):
  return step % 2 == 1


def multi_steps(tx, k):
  return optax.MultiSteps(tx, k).gradient_transformation()


# name -> schedule -> an optimizer that reads it at each of its updates.
CLOCKED = {
  'sgd': optax.sgd,
  'momentum': lambda s: optax.sgd(s, momentum=0.9),
  'adam': lambda s: optax.adam(s),
  'decay': lambda s: optax.chain(optax.add_decayed_weights(s), optax.sgd(0.1)),
  'adamw': lambda s: optax.adamw(s, weight_decay=s),
  'injected_momentum': lambda s: optax.inject_hyperparams(optax.sgd)(
    learning_rate=0.1, momentum=s
  ),
  'injected_decay': lambda s: optax.inject_hyperparams(optax.adamw)(
    learning_rate=s, weight_decay=s, b1=lambda c: 0.9 - s(c)
  ),
  'masked': lambda s: optax.masked(optax.sgd(s), {'a': True, 'b': False}),
  'partition': lambda s: optax.partition(
    {'x': optax.sgd(s), 'y': optax.adam(s)}, {'a': 'x', 'b': 'y'}
  ),
  'if_finite': lambda s: optax.apply_if_finite(optax.sgd(s), 3),
  'multi_steps': lambda s: multi_steps(optax.sgd(s, momentum=0.9), 2),
  'multi_steps_inside': lambda s: optax.chain(
    optax.clip(1.0), multi_steps(optax.inject_hyperparams(optax.sgd)(s), 3)
  ),
  'ademamix': lambda s: contrib.ademamix(s, alpha=s, b3=lambda c: 1 - s(c)),
  'schedule_free': lambda s: contrib.schedule_free(optax.sgd(s), s),
  'mechanize': lambda s: contrib.mechanize(optax.sgd(s)),
  'galore': lambda s: optax.chain(
    contrib.scale_by_galore(base_optimizer=optax.scale_by_schedule(s)),
    optax.scale(-1.0),
  ),
  'injected_prodigy': lambda s: optax.inject_hyperparams(contrib.prodigy)(
    learning_rate=s, estim_lr0=0.1
  ),
}
# The same, where the schedule is by a count of the optimizer's own.
OWN = {
  'prodigy': (
    lambda s: contrib.prodigy(s, estim_lr0=0.1),
    'contrib.prodigy has one count',
  ),
  'dadapt_adamw': (
    lambda s: optax.chain(contrib.dadapt_adamw(s, estim_lr0=0.1)),
    'contrib.dadapt_adamw has one count',
  ),
  'madgrad': (contrib.madgrad, r'inject_hyperparams\(optax.contrib.madgrad\)'),
  'simplified_ademamix': (
    lambda s: contrib.simplified_ademamix(0.01, alpha=s),
    'schedule alpha',
  ),
  'conditionally_transform': (
    lambda s: optax.chain(
      optax.sgd(0.1),
      optax.conditionally_transform(optax.scale_by_schedule(s), every_other),
    ),
    'inside optax.conditionally_transform',
  ),
  'conditionally_mask': (
    lambda s: optax.conditionally_mask(optax.sgd(s), every_other),
    'inside optax.conditionally_mask',
  ),
  'sam': (
    lambda s: contrib.sam(optax.sgd(s), optax.sgd(0.01)),
    'inside optax.contrib.sam',
  ),
  'multi_steps_of_a_schedule': (
    lambda s: multi_steps(optax.sgd(s), lambda update: 1 + update % 2),
    'MultiSteps accumulates a varying number of gradients',
  ),
  'experimental': (
    lambda s: aggregating.process(
      optax.identity(),
      aggregating.accumulate_avg_updates(2),
      optax.sgd(s),
    ),
    'use optax.MultiSteps',
  ),
}
# The same optimizers, with nothing in them that a rest would delay.
CONSTANT = {
  'prodigy': lambda: contrib.prodigy(1.0, estim_lr0=0.1),
  'dadapt_adamw': lambda: contrib.dadapt_adamw(1.0, estim_lr0=0.1),
  'madgrad': lambda: contrib.madgrad(0.01),
  'simplified_ademamix': lambda: contrib.simplified_ademamix(0.01),
  'conditionally_mask': lambda: optax.conditionally_mask(
    optax.sgd(0.1), every_other
  ),
  'sam': lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.01)),
}
# How many gradients make an update.
ACCUMULATED = {'multi_steps': 2, 'multi_steps_inside': 3}

START = {
  'a': np.array([[1.0, -2.0], [0.5, 3.0]], np.float32),
  'b': np.array([1.0], np.float32),
}
GRADIENTS = np.random.default_rng(0).normal(size=(T, N, 5)).astype(np.float32)


def loss(params, model_state, batch, key):
  """A quadratic with noise, so that the gradient depends on the point."""
  del key
  x = jnp.concatenate([params['a'].ravel(), params['b']])
  return (x**2).sum() / 2 + x @ batch, (model_state, {})


def trained(algorithm, num_devices=2):
  """The parameters [T, N, 5] after each step."""
  mesh = pr.engine.ReplicaMesh(N, num_devices)
  state = pr.engine.create_train_state(mesh, algorithm, START)
  steps = pr.engine.make_train_steps(mesh, algorithm, loss)
  found = []
  for g in GRADIENTS:
    batch = g.reshape((num_devices, 1, N // num_devices, 5))
    state, _ = steps(state, mesh.place_per_device(batch))
    x = mesh.gather(state.params)
    found.append(np.concatenate([x['a'].reshape((N, 4)), x['b']], axis=1))
  return np.stack(found)


def vector(params):
  return np.concatenate([np.ravel(params['a']), params['b']])


def plain(tx, replica):
  """optax's own loop for one replica."""
  gradient = jax.grad(lambda x, g: loss(x, None, g, None)[0])

  @jax.jit
  def move(x, state, g):
    updates, state = tx.update(gradient(x, g), state, x)
    return optax.apply_updates(x, updates), state

  x, found = START, []
  state = tx.init(jax.tree.map(jnp.asarray, x))
  for g in GRADIENTS[:, replica]:
    x, state = move(x, state, g)
    found.append(vector(x))
  return np.stack(found)


def by_the_engine(name, replica, active, resets):
  """The loop of a replica whose schedules are constants of the step.

  At each step the optimizer is made again, with what the schedule gives there.
  """
  k = ACCUMULATED.get(name, 1)
  gradient = jax.grad(lambda x, g: loss(x, None, g, None)[0])

  def update(value, x, state, g):
    tx = CLOCKED[name](lambda count: value)
    updates, state = tx.update(gradient(x, g), state, x)
    return optax.apply_updates(x, updates), state

  move, x, found = jax.jit(update), START, []
  fresh = CLOCKED[name](rate).init
  state = fresh(jax.tree.map(jnp.asarray, x))
  for t, g in enumerate(GRADIENTS[:, replica]):
    # What schedule-free reads is by a count that begins at 1.
    at = t + 1 if name == 'schedule_free' else t // k
    if active[t]:
      x, state = move(rate(np.float32(at)), x, state, g)
    if resets[t]:
      state = fresh(x)
    found.append(vector(x))
  return np.stack(found)


class PlainTest(parameterized.TestCase):
  """Without rests and resets an optimizer is optax's."""

  @parameterized.parameters(*CLOCKED, *OWN)
  def test_equals_optaxs_loop(self, name):
    tx = CLOCKED[name](rate) if name in CLOCKED else OWN[name][0](rate)
    found = trained(pr.step(tx))
    for i in (0, 3):
      np.testing.assert_allclose(
        found[:, i], plain(tx, i), rtol=2e-5, atol=1e-6
      )


class EngineClockTest(parameterized.TestCase):
  """With rests and resets a schedule reads the step, or is refused."""

  RESTS = (1, 2, 3, 3)

  @parameterized.parameters(*[n for n in CLOCKED if n != 'schedule_free'])
  def test_rests_and_resets_do_not_delay_a_schedule(self, name):
    tx = CLOCKED[name](rate)
    found = trained(
      pr.chain(
        pr.where(pr.stages.first_steps(self.RESTS), pr.step(tx)),
        pr.at(pr.schedules.every(4), pr.restart(tx)),
      )
    )
    resets = [(t + 1) % 4 == 0 for t in range(T)]
    for i in (0, 2):
      active = [t % 3 < self.RESTS[i] for t in range(T)]
      want = by_the_engine(name, i, active, resets)
      np.testing.assert_allclose(found[:, i], want, rtol=2e-5, atol=1e-6)

  @parameterized.parameters(*OWN)
  def test_what_cannot_be_on_the_clock_is_refused(self, name):
    make, message = OWN[name]
    tx = make(rate)
    mesh = pr.engine.ReplicaMesh(N, 2)
    rests = pr.where(pr.stages.first_steps(self.RESTS), pr.step(tx))
    with self.assertRaisesRegex(ValueError, f'where: counts.*{message}'):
      pr.engine.create_train_state(mesh, rests, START)
    for resets in (
      pr.chain(pr.step(tx), pr.at(pr.schedules.every(2), pr.restart(tx))),
      pr.fedavg(tx, period=2),
    ):
      with self.assertRaisesRegex(ValueError, f'restart: a reset.*{message}'):
        pr.engine.create_train_state(mesh, resets, START)

  @parameterized.parameters(*CONSTANT)
  def test_without_a_schedule_it_is_not(self, name):
    tx = CONSTANT[name]()
    algorithm = pr.chain(
      pr.where(pr.stages.first_steps(self.RESTS), pr.step(tx)), pr.restart(tx)
    )
    pr.engine.create_train_state(pr.engine.ReplicaMesh(N, 2), algorithm, START)

  def test_a_condition_on_the_step_reads_the_engines(self):
    # At odd steps only, also for those that rested.
    tx = CONSTANT['conditionally_mask']()
    found = trained(pr.where(pr.stages.first_steps((1, 2, 2, 2)), pr.step(tx)))
    moved = (np.diff(found, axis=0) != 0).any(axis=2)
    # Replica 0 takes the even steps.
    np.testing.assert_array_equal(moved[:, 0], np.zeros(T - 1, bool))
    np.testing.assert_array_equal(moved[:, 1], every_other(np.arange(1, T)))

  def test_annealed_noise_continues_after_a_reset(self):
    def moved(gamma):
      tx = optax.chain(optax.add_noise(1.0, gamma, key=0), optax.sgd(1.0))
      algorithm = pr.chain(
        pr.step(tx), pr.at(pr.schedules.every(2), pr.restart(tx))
      )
      mesh = pr.engine.ReplicaMesh(N, 2)
      state = pr.engine.create_train_state(
        mesh, algorithm, np.zeros(3, np.float32)
      )
      steps = pr.engine.make_train_steps(
        mesh, algorithm, lambda x, s, b, k: (0 * x.sum() + 0 * b, (s, {}))
      )
      points = [np.zeros((N, 3))]
      for _ in range(T):
        batch = mesh.place_per_device(np.zeros((2, 1, 2), np.float32))
        state, _ = steps(state, batch)
        points.append(mesh.gather(state.params))
      return np.diff(points, axis=0)

    ratio = moved(1.0) / moved(0.0)
    want = 1 / np.sqrt(1.0 + np.arange(T))
    np.testing.assert_allclose(
      ratio, np.broadcast_to(want[:, None, None], ratio.shape), rtol=1e-3
    )


class AccumulationTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda: optax.sgd(0.1), 1),
    (lambda: multi_steps(optax.sgd(0.1), 4), 4),
    (lambda: optax.chain(optax.clip(1.0), multi_steps(optax.sgd(1), 3)), 3),
    (lambda: multi_steps(optax.sgd(0.1), lambda update: 2 + update), None),
    (lambda: multi_steps(optax.sgd(0.1), lambda update: 2), 2),
    (
      lambda: optax.partition(
        {'x': multi_steps(optax.sgd(1), 2), 'y': multi_steps(optax.sgd(1), 3)},
        {'a': 'x', 'b': 'y'},
      ),
      None,
    ),
  )
  def test_is_the_number_of_gradients_of_an_update(self, make, k):
    self.assertEqual(optimizer_clocks.accumulation(make()), k)

  def test_the_wrapper_itself_is_not_an_optimizer(self):
    with self.assertRaisesRegex(ValueError, r'append .gradient_transform'):
      pr.local_update(optax.MultiSteps(optax.sgd(0.1), 2))


# optax's counts that are not read by schedules: of buffers, of failures, or of
# a cycle of the optimizer's own.
OF_BUFFERS = {
  'AccumulateAvgUpdatesState',
  'ApplyEvery',
  'ApplyIfFiniteState',
  'COCOBState',
  'EmaState',
  'FactoredState',
  'GaLoreState',
  'LookaheadState',
  'MechanicState',
  'MuonState',
  'PerElementMeanAndSumSqDiffGradsState',
  'PerElementMeanAndVarianceEMAState',
  'ReduceLROnPlateauState',
  'SAMState',
  'ScaleByAdamState',
  'ScaleByAdanState',
  'ScaleByAmsgradState',
  'ScaleByBeliefState',
  'ScaleByLBFGSState',
  'ScaleByLionState',
  'ScaleByNovogradState',
  'ScaleByRStdDevWithCountState',
  'ScaleByRmsWithCountState',
  'SophiaState',
  # Of the search inside one update.
  'BacktrackingLineSearchState',
  'ZoomLinesearchState',
}
COUNTS = {'count', 'step', 'step_count', 't', 'count_m2', 'micro_step'}
COUNTS |= {'mini_step', 'gradient_step', 'steps_since_sync', 'iter_num'}
COUNTS |= {'notfinite_count', 'total_notfinite'}


class EveryStateTest(absltest.TestCase):
  def test_every_count_of_optax_is_known(self):
    root, found = pathlib.Path(optax.__path__[0]), set()
    for file in root.rglob('*.py'):
      if file.stem.endswith('_test') or 'test_utils' in file.stem:
        continue
      path = file.relative_to(root).with_suffix('').parts
      module = importlib.import_module('.'.join(('optax', *path)))
      found |= {
        x.__name__
        for x in vars(module).values()
        if inspect.isclass(x) and COUNTS & set(getattr(x, '_fields', ()))
      }
    known = {*optimizer_clocks.CLOCKS, *optimizer_clocks.SHARED, *OF_BUFFERS}
    self.assertEqual(found - known, {'MultiStepsState'})
    self.assertEqual(set(optimizer_clocks.CLOCKS) - found, set())
    self.assertEqual(set(optimizer_clocks.SHARED) - found, set())


if __name__ == '__main__':
  absltest.main()
