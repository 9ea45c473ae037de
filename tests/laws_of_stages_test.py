"""The laws of the algebra of registers, and its misuses."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness
from tests.rows import PLAIN, SGD, N, T

EVERY = pr.schedules.every(4)
MEAN = pr.sync(pr.mixing.mean())
LOCAL = (pr.gradient(), pr.local_update(SGD))


def points(*stages):
  """x[T, N, d] of a chain after each step."""
  with jax.enable_x64(True):
    run = harness.make_engine(pr.chain(*stages), N, laws.ONE_LAYOUT)
    _, x = laws.advance(run, laws.initial_state(run), range(T))
  return np.stack(x)


def same(one, other):
  np.testing.assert_array_equal(points(*one), points(*other))


def shapes_of(algorithm):
  """One replica's shapes, as the ledger wants them."""
  start = harness.to_tree(laws.PROBLEMS['smooth'].start.astype(np.float32))
  mesh = pr.engine.ReplicaMesh(N, 2)
  return pr.engine.replica_shapes(harness.state_types(mesh, algorithm, start))


class LawsTest(parameterized.TestCase):
  """ALGEBRA, the laws that are not of single algorithms."""

  def test_chains_nest_and_names_do_not_matter(self):
    gradient, update = LOCAL
    average = pr.at(EVERY, MEAN)
    flat = points(gradient, update, average)
    for other in (
      (pr.chain(gradient), pr.chain(pr.chain(update), average), pr.chain()),
      (pr.algorithm('a', gradient, pr.algorithm('b', update), average),),
    ):
      np.testing.assert_array_equal(points(*other), flat)

  def test_at_distributes_over_stages(self):
    remember = pr.remember(x0='params')
    pull = pr.let(params=lambda params, x0: params + 0.1 * (x0 - params))
    note = pr.let(x0='params')
    same(
      (remember, *LOCAL, pull, pr.at(EVERY, MEAN, note)),
      (remember, *LOCAL, pull, pr.at(EVERY, MEAN), pr.at(EVERY, note)),
    )

  def test_at_always_is_its_stages(self):
    same((*LOCAL, pr.at(pr.schedules.always(), MEAN)), (*LOCAL, MEAN))

  def test_assignments_are_a_sequence(self):
    remember = pr.remember(a='params', b=pr.zeros)
    change = {
      'b': lambda a, params: params - a,
      'params': lambda params, b: params - 0.1 * b,
    }
    each = [pr.let(**{name: rule}) for name, rule in change.items()]
    same(
      (remember, *LOCAL, pr.let(**change)),
      (remember, *LOCAL, *each),
    )

  def test_a_weight_of_one_changes_no_bit(self):
    average = pr.at(EVERY, MEAN)
    same((*LOCAL, average), (pr.remember(weight=1.0), *LOCAL, average))

  def test_a_weight_of_two_changes_nothing_but_rounding(self):
    # The negative twin: weights that differ do.
    average = pr.at(EVERY, MEAN)
    plain = points(*LOCAL, average)
    twice = points(pr.remember(weight=2.0), *LOCAL, average)
    laws.assert_close(twice, plain)
    unlike = pr.remember(weight=pr.per_replica(range(1, N + 1)))
    self.assertGreater(
      np.abs(points(unlike, *LOCAL, average) - plain).max(), 1e-3
    )

  def test_cost_is_masked_by_when_and_who(self):
    algorithm = pr.chain(
      pr.at(
        lambda step: step % 6 == 5,
        pr.where(lambda replica: replica < 3, pr.gradient()),
        pr.at(EVERY, MEAN),
      ),
      pr.gradient(),
      pr.local_update(SGD),
      MEAN,
    )
    account = pr.ledger.account(algorithm, shapes_of(algorithm), N, T)
    # Steps 5, 11, 17, 23; of them 11 and 23 are at the end of four.
    self.assertEqual(account.gradients[-1], 4 * 3 + N * T)
    self.assertEqual(account.rounds[-1], 2 + T)

  def test_step_local_registers_have_a_size(self):
    algorithm = pr.chain(
      pr.gradient(),
      pr.let(half=lambda grads: grads / 2),
      pr.sync(pr.mixing.mean(), 'half', codec=pr.codecs.signs()),
      pr.let(grads='half'),
      pr.local_update(SGD),
    )
    sent = algorithm.cost(shapes_of(algorithm), N, np.arange(2))[1]
    # One bit an entry and a scale, for leaves of 4 and 2 entries.
    self.assertEqual(sent.bytes_sent, (N - 1) * 2 * (1 + 4))

  def test_registers_are_in_the_state_under_their_names(self):
    algorithm = pr.slowmo(PLAIN, learning_rate=0.1, period=4, slow_momentum=0.5)
    mesh = pr.engine.ReplicaMesh(N, 2)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.zeros(3, np.float32)
    )
    self.assertEqual(set(state.registers), {'slowmo.x0', 'slowmo.u'})


# Mistake -> (stages, part of the error message).
INCOMPLETE = {
  'read_by_a_slip': (
    lambda: (pr.remember(x0='params'), *LOCAL, pr.let(params='x_0')),
    r"register 'x_0' is read, but no stage assigns it \(did you mean 'x0'\?\)",
  ),
  'read_by_a_slip_inside': (
    lambda: (
      pr.algorithm('a', pr.remember(x0='params'), pr.let(params='x_0')),
    ),
    r"'x_0' is read, but no stage assigns it \(did you mean 'x0'\?\)",
  ),
  'assigned_by_a_slip': (
    lambda: (pr.remember(u=pr.zeros), *LOCAL, pr.let(U='u')),
    r"register 'U' is assigned but never read; remove it, or declare",
  ),
  'assigned_by_a_longer_slip': (
    lambda: (pr.remember(anchor='params'), pr.let(anchr='anchor')),
    r"'anchr' is assigned but never read \(did you mean 'anchor'\?\)",
  ),
  'grads_before_the_gradient': (
    lambda: LOCAL[::-1],
    'grads is read before a gradient is taken; put pr.gradient',
  ),
  'opt_state_without_an_optimizer': (
    lambda: (pr.gradient(), pr.sync(pr.mixing.mean(), 'opt_state')),
    'the algorithm has no optimizer; add pr.local_update',
  ),
  'read_before_it_is_declared': (
    lambda: (pr.let(params='x0'), pr.remember(x0='params')),
    "'x0' is read before it is declared; move its pr.remember",
  ),
  'assigned_later': (
    lambda: (
      pr.let(params='d'),
      pr.let(d='params'),
      pr.sync(pr.mixing.mean(), 'd'),
    ),
    "'d' is read where it may hold no value, because it is assigned later",
  ),
  'assigned_at_some_steps': (
    lambda: (pr.at(EVERY, pr.let(d='params')), pr.let(params='d')),
    "'d' is read where it may hold no value",
  ),
  'metrics_before_the_gradient': (
    lambda: (pr.compute(metrics=lambda metrics: metrics), *LOCAL),
    'metrics is read before a gradient is taken',
  ),
  'remember_reads_what_a_step_assigns': (
    lambda: (*LOCAL, pr.let(d='params'), pr.remember(x0='d')),
    "'d' is read by remember, evaluate or on_resize, outside of steps, but it",
  ),
  'remember_reads_a_gradient': (
    lambda: (*LOCAL, pr.algorithm('a', pr.remember(x0='grads'))),
    "'grads' is read by remember, evaluate or on_resize",
  ),
  'evaluate_reads_what_a_step_assigns': (
    lambda: (*LOCAL, pr.let(d='params'), pr.evaluate(params='d')),
    "'d' is read by remember, evaluate or on_resize, outside of steps, but it",
  ),
  'of_the_stages_around_and_assigned_inside': (
    lambda: (
      pr.let(d='params'),
      pr.algorithm('a', pr.algorithm('b', pr.sync(pr.mixing.mean(), 'd'))),
      pr.let(params='d'),
    ),
    "'d' is read inside the algorithm 'b', which also assigns it",
  ),
  'own_is_never_read': (
    lambda: (pr.sync(pr.mixing.mean(), codec=pr.codecs.signs(), own='known'),),
    "'known' is assigned but never read",
  ),
}

# Misuses that are found when a stage is constructed.
WRONG = {
  'declared_twice': (
    lambda: pr.chain(pr.remember(x0='params'), pr.remember(x0='params')),
    "'x0' is declared by two stages of a chain; put one of them",
  ),
  'algorithms_of_one_name': (
    lambda: pr.chain(*[pr.algorithm('a', pr.remember(x0='params'))] * 2),
    'declared by two stages',
  ),
  'two_weights': (
    lambda: pr.chain(pr.remember(weight=1.0), pr.sgp(SGD)),
    "one register 'weight', which sync uses to weight",
  ),
  'average_without_its_mixing': (
    lambda: pr.d_psgd(SGD, average=MEAN),
    'average expects a function from the mixing to a stage',
  ),
  'average_is_a_function': (
    lambda: pr.k_avg(SGD, period=4, average=pr.sync),
    'chain expects stages .* got <function sync',
  ),
  'two_optimizers': (
    lambda: pr.chain(*LOCAL, *LOCAL),
    'two local_update stages were chained; combine their optimizers',
  ),
  'clock': (lambda: pr.let(step='params'), "cannot assign 'step'"),
  'clock_in_compute': (lambda: pr.compute(key=1.0), "cannot assign 'key'"),
  'field': (lambda: pr.remember(params=pr.zeros), "already has 'params'"),
  'no_rule': (lambda: pr.let(u=[1.0]), 'expects a function of registers'),
  'no_names': (lambda: pr.let(u=lambda *x: x), 'name its inputs with'),
  'nothing_required': (lambda: pr.require(3), 'require expects a function'),
  'no_steps': (
    lambda: pr.stages.first_steps(3),
    'one number per replica, got 3',
  ),
  'nothing_expected': (
    lambda: pr.where(True, pr.gradient(), expected=True),
    'expected must be a function',
  ),
  'no_mixing': (
    lambda: pr.sync('mean'),
    'expects a mixing such as pr.mixing.mean',
  ),
  'no_schedule': (lambda: pr.at(4, MEAN), 'expects a schedule such as'),
  'no_optimizer': (lambda: pr.local_update('sgd'), 'an optax transformation'),
  'no_stage': (lambda: pr.chain(SGD), 'chain expects stages'),
  'talk_inside_where': (
    lambda: pr.where(lambda step: step < 1, MEAN),
    'put sync after where',
  ),
  'where_unknown_to_the_ledger': (
    lambda: pr.where(lambda weight: weight > 0, pr.gradient()),
    'which the ledger does not know',
  ),
}

# Misuses that need shapes, or the number of replicas.
UNFIT = {
  'shape': (
    lambda: (pr.remember(x0='params'), pr.let(params=lambda x0: x0.sum())),
    r'a leaf of shape \(2,\) was assigned an array of shape \(\)',
  ),
  'structure': (
    lambda: (
      pr.compute(n=lambda params: params['w']),
      pr.let(params=lambda params, n: params + n),
    ),
    "registers 'params' and 'n' have different structures",
  ),
  'no_array': (
    lambda: (pr.let(params=lambda params: (params, params)),),
    'a rule must return one array for a leaf, got .*use pr.compute',
  ),
  'output': (
    lambda: (
      pr.remember(n=lambda params: params.sum()),
      pr.evaluate(params='n'),
    ),
    r'a leaf of shape \(2,\) was assigned an array of shape \(\)',
  ),
  'number_of_replicas': (
    lambda: (pr.remember(weight=pr.per_replica([1.0] * 3)), MEAN),
    'each of the 8 replicas, got 3',
  ),
  'mixing': (
    lambda: (pr.sync(pr.mixing.group_mean(3)),),
    'must divide the 8 replicas',
  ),
}


class MisuseTest(parameterized.TestCase):
  """Nothing is silent: each misuse is an error before anything is traced."""

  @parameterized.parameters(*INCOMPLETE, *UNFIT)
  def test_in_create_train_state(self, name):
    make, message = {**INCOMPLETE, **UNFIT}[name]
    start = harness.to_tree(laws.PROBLEMS['smooth'].start.astype(np.float32))
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N, 2), pr.chain(*make()), start
      )

  @parameterized.parameters(*WRONG)
  def test_when_it_is_constructed(self, name):
    make, message = WRONG[name]
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_a_stage_that_assigns_more_than_it_says(self):
    stage = pr.gradient()
    stage = stage._replace(names=stage.names._replace(writes=frozenset()))
    algorithm = pr.chain(stage)
    mesh = pr.engine.ReplicaMesh(N, 2)
    problem = laws.PROBLEMS['smooth']
    start = harness.to_tree(problem.start.astype(np.float32))
    state = pr.engine.create_train_state(mesh, algorithm, start)
    batch = harness.problem_batches(mesh, problem, [0], np.float32)
    steps = pr.engine.make_train_steps(mesh, algorithm, harness.problem_loss)
    with self.assertRaisesRegex(ValueError, r'but its names.writes are \[\]'):
      steps(state, batch)


class HandWrittenTest(parameterized.TestCase):
  """A stage that no rule can say, as a user would write it."""

  def test_reads_and_writes_by_name(self):
    def update(replica, state, context):
      largest = jax.lax.pmax(
        jax.tree.map(lambda x: x.max(axis=0), replica.get('params')),
        pr.base.AXIS_NAME,
      )
      block = replica.params['b'].shape[0]
      new = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (block, *x.shape)), largest
      )
      return replica.set({'largest': new}), state

    def init(replica, num_replicas):
      return replica.set({'largest': replica.params}), ()

    stage = pr.base.ReplicaTransformation(
      update, init, names=pr.base.names(reads=['params'], writes=['largest'])
    )
    x = points(*LOCAL, stage, pr.let(params='largest'))
    for t in range(T):
      np.testing.assert_array_equal(x[t], [x[t][0]] * N)


if __name__ == '__main__':
  absltest.main()
