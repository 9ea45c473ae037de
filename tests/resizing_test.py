"""Tests of `engine.resizing` and `stages.resize`: N replicas become N'."""

import dataclasses
import pathlib
import re
import tempfile

from absl.testing import absltest, parameterized
import chex
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.flags import run_config
import prsgd_jax as pr
from prsgd_jax.engine import checkpoint_leaves, resizing
from prsgd_jax.engine.checkpoints import CheckpointError
from tests.config_test import DEFAULTS
from tests.rows import TABLE

NAMES = re.compile('`([a-z0-9_]+)`')
# First word of a row -> its algorithm, if it declares registers of all.
ALGORITHM_OF = {
  'one': 'one_shot_averaging',
  'tail': 'tail_averaging',
  'natural': 'natural_gradient_averaging',
  'easgd': 'easgd',
  'eamsgd': 'eamsgd',
  'fedavg': 'fedavg',
  'fedyogi': 'fedavg',
  'fedprox': 'fedprox',
}
TX = optax.sgd(0.1, momentum=0.9)


def loss_fn(params, model_state, batch, key):
  del key
  return jnp.square(params - batch).mean(), (model_state, {})


def trainer(algorithm, n, num_devices=1):
  return pr.trainer(algorithm, loss_fn, num_replicas=n, num_devices=num_devices)


def state_of(algorithm, n):
  start = np.arange(3 * n, dtype=np.float32).reshape((n, 3)) ** 2
  return trainer(algorithm, n).init(start, per_replica=True)


def leaves_of(state):
  return checkpoint_leaves.to_host(state.mesh, state.on_devices)


def resized(algorithm, saved, n, **options):
  like = state_of(algorithm, n).on_devices
  return resizing.resize(algorithm, like, saved, n, **options)


class AveragesTest(parameterized.TestCase):
  """What holds without a declaration."""

  @parameterized.parameters(1, 2, 3, 8)
  def test_floats_are_averaged_in_double_precision(self, n):
    saved = leaves_of(state_of(pr.ssgd(TX), 4))
    saved['params'] = np.float32([[1], [1e8], [-1e8], [3]]) * np.ones((4, 3))
    saved['params'] = saved['params'].astype(np.float32)
    new = resized(pr.ssgd(TX), saved, n)['params']
    self.assertEqual(new.dtype, np.float32)
    np.testing.assert_array_equal(new, np.ones((n, 3)))

  @parameterized.parameters(2, 3, 5)
  def test_equal_rows_keep_their_bits(self, n):
    saved = leaves_of(state_of(pr.ssgd(TX), 3))
    saved['params'] = np.full((3, 3), 0.1, np.float32)
    new = resized(pr.ssgd(TX), saved, n)
    np.testing.assert_array_equal(new['params'], np.full((n, 3), 0.1, 'f4'))
    self.assertEqual(new['step'], saved['step'])
    np.testing.assert_array_equal(new['key'], saved['key'])

  def test_counts_that_differ_become_the_largest(self):
    algorithm = pr.ssgd(optax.adam(0.1))
    saved = leaves_of(state_of(algorithm, 2))
    (count,) = [name for name in saved if name.endswith('.count')]
    saved[count] = np.array([3, 7], np.int32)
    np.testing.assert_array_equal(resized(algorithm, saved, 4)[count], [7] * 4)

  def test_a_replica_without_weight_has_no_part(self):
    algorithm = pr.fedavg(TX, period=4, participation=0.5)
    saved = leaves_of(state_of(algorithm, 4))
    saved['registers.weight'] = np.float32([0, 1, 3, 0])
    x = saved['params'].copy()
    x[0] = np.nan
    saved['params'] = x
    expected = (x[1] + 3 * x[2]) / 4
    new = resized(algorithm, saved, 2)['params']
    np.testing.assert_allclose(new, np.stack([expected] * 2), rtol=1e-6)

  @parameterized.parameters((8, 2), (2, 8))
  def test_counter_of_alternating_matrices_appears_and_goes(self, n, m):
    algorithm = pr.d_psgd(TX, mixing=pr.graphs.one_peer_exponential())
    new = resized(algorithm, leaves_of(state_of(algorithm, n)), m)
    rounds = [x for name, x in new.items() if name.endswith('.rounds')]
    self.assertLen(rounds, int(m == 8))
    for x in rounds:
      np.testing.assert_array_equal(x, np.zeros(m))


class DeadReplicasTest(parameterized.TestCase):
  """Replicas that a fault stopped have no part in what comes after."""

  @parameterized.parameters(2, 6)
  def test_are_left_out_of_averages_and_do_not_stay(self, n):
    faults = pr.faults.crash(0, at=2), pr.faults.crash(1, at=2)
    run = pr.one_shot_averaging(optax.adam(0.1), num_steps=9)
    algorithm = pr.faults.inject(run, *faults)
    saved = leaves_of(state_of(algorithm, 4))
    saved['algorithm_state.0'] = np.array([False, False, True, True])
    new = resized(algorithm, saved, n)
    origin = [2, 3, 2, 3, 2, 3][:n]
    np.testing.assert_array_equal(new['params'], saved['params'][origin])
    averaged = pr.faults.inject(pr.ssgd(TX), *faults)
    saved = leaves_of(state_of(averaged, 4))
    saved['algorithm_state.0'] = np.array([False, False, True, True])
    new = resized(averaged, saved, n)
    expected = (saved['params'][2] + saved['params'][3]) / 2
    np.testing.assert_array_equal(new['params'], np.stack([expected] * n))
    self.assertTrue(new['algorithm_state.0'].all())


class RefusalTest(parameterized.TestCase):
  def refused(self, pattern, algorithm, saved, n=2, **options):
    with self.assertRaisesRegex(ValueError, pattern) as caught:
      resized(algorithm, saved, n, **options)
    self.assertNotIn('\n', str(caught.exception))

  def test_checkpoint_of_another_algorithm(self):
    saved = leaves_of(state_of(pr.ssgd(TX), 4))
    self.refused(
      r'it has algorithm_state.*trace: nothing of each replica, this run has '
      r'float32\[3\]; it is of another algorithm or model',
      pr.diloco(TX, period=4),
      saved,
    )  # fmt: skip

  @parameterized.parameters([[]], [[0, 0]], [[0, 4]])
  def test_survivors_are_saved_replicas(self, survivors):
    saved = leaves_of(state_of(pr.ssgd(TX), 4))
    self.refused(
      r'survivors expects different replicas in 0 .. 3, got \[',
      pr.ssgd(TX),
      saved,
      survivors=survivors,
    )

  def test_algorithm_may_refuse(self):
    def never(params):
      del params
      raise ValueError('two replicas are one too few')

    algorithm = pr.chain(pr.ssgd(TX), pr.on_resize(params=never))
    saved = leaves_of(state_of(algorithm, 4))
    self.refused('one too few', algorithm, saved)

  @parameterized.parameters(
    ({'step': 0}, "last for the whole run, got 'step'"),
    ({'grads': 0}, "last for the whole run, got 'grads'"),
    ({'x0': lambda key: key}, "cannot read 'key'"),
    ({'x0': pr.stages.kept(lambda shared_key: 0)}, "cannot read 'shared_key'"),
    ({'x0': []}, 'on_resize.x0=.... expects a function of registers'),
  )
  def test_declaration_is_checked(self, changed, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      pr.on_resize(**changed)

  def test_register_that_ends_with_the_step_is_refused(self):
    algorithm = pr.chain(
      pr.ssgd(TX), pr.let(d='params'), pr.on_resize(params='d')
    )
    with self.assertRaisesRegex(ValueError, 'remember, evaluate or on_resize'):
      state_of(algorithm, 2)


class SurvivorsTest(parameterized.TestCase):
  """Independent runs keep their own parameters."""

  @parameterized.parameters(
    (2, None, [0, 1]),
    (2, [3, 1], [3, 1]),
    (2, [3, 1, 0], [3, 1]),
    (4, [2], [2, 2, 2, 2]),
    (6, None, [0, 1, 2, 3, 0, 1]),
    (6, [3, 1], [3, 1, 3, 1, 3, 1]),
  )
  def test_those_that_stay_keep_and_newcomers_copy(self, n, survivors, origin):
    algorithm = pr.one_shot_averaging(TX, num_steps=9)
    saved = leaves_of(state_of(algorithm, 4))
    new = resized(algorithm, saved, n, survivors=survivors)
    np.testing.assert_array_equal(new['params'], saved['params'][origin])

  def test_newcomers_of_easgd_start_at_the_center(self):
    algorithm = pr.easgd(TX, period=4, alpha=0.1)
    saved = leaves_of(state_of(algorithm, 4))
    saved['registers.easgd.center'] = np.full((4, 3), 7, np.float32)
    new = resized(algorithm, saved, 4, survivors=[3])['params']
    np.testing.assert_array_equal(new[0], saved['params'][3])
    np.testing.assert_array_equal(new[1:], np.full((3, 3), 7))


class RestoreTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(root)

  def test_is_refused_unless_asked_for(self):
    state = state_of(pr.ssgd(TX), 4)
    trainer(pr.ssgd(TX), 4).save(self.directory, state)
    run = trainer(pr.ssgd(TX), 2)
    like = run.init(np.zeros(3, np.float32))
    with self.assertRaisesRegex(
      CheckpointError,
      'has 4 replicas, this run has 2; pass resize=True to change their number',
    ):
      run.restore(self.directory, like)
    with self.assertRaisesRegex(ValueError, 'survivors does nothing without'):
      run.restore(self.directory, like, survivors=[0])
    found = run.restore(self.directory, like, resize=True)
    np.testing.assert_allclose(found.params[0], state.params.mean(axis=0))

  def test_same_number_is_restored_bit_for_bit(self):
    state = state_of(pr.diloco(TX, period=4), 4)
    run = trainer(pr.diloco(TX, period=4), 4, num_devices=2)
    trainer(pr.diloco(TX, period=4), 4).save(self.directory, state)
    like = run.init(np.zeros(3, np.float32))
    found = run.restore(self.directory, like, resize=True)
    chex.assert_trees_all_equal(leaves_of(found), leaves_of(state))

  def test_message_of_another_algorithm_names_the_checkpoint(self):
    trainer(pr.ssgd(TX), 4).save(self.directory, state_of(pr.ssgd(TX), 4))
    run = trainer(pr.diloco(TX, period=4), 2)
    with self.assertRaisesRegex(
      CheckpointError, '/0 cannot be resized: it has'
    ):
      like = run.init(np.zeros(3, np.float32))
      run.restore(self.directory, like, resize=True)

  @parameterized.parameters((4, 2), (2, 4))
  def test_training_continues_from_the_mean(self, n, m):
    def make(n):
      return trainer(
        pr.choco_sgd(
          TX,
          mixing=pr.graphs.ring(),
          compressor=pr.codecs.top_k(0.5),
          consensus_step_size=0.5,
        ),
        n,
        num_devices=2,
      )

    data = pr.shared(np.ones((32, 3), np.float32), batch_size=2)
    old, new = make(n), make(m)
    state, _ = old.run(old.init(np.zeros(3, np.float32)), data, 3)
    old.save(self.directory, state)
    like = new.init(np.zeros(3, np.float32))
    found = new.restore(self.directory, like, resize=True)
    self.assertEqual(found.step, 3)
    mean = state.params.mean(axis=0)
    np.testing.assert_allclose(found.params, np.stack([mean] * m), rtol=1e-6)
    found, metrics = new.run(found, data, 3)
    self.assertEqual(metrics['loss'].shape, (3, m))
    self.assertLess(metrics['loss'].max(), 1)  # the loss at the first point


class GuideTest(absltest.TestCase):
  """The guide lists the exceptions that the algorithms declare."""

  def test_lists_each_declared_register_of_each_algorithm(self):
    guide = pathlib.Path(__file__).parents[1] / 'docs' / 'change_replicas.md'
    exceptions = guide.read_text().partition('## Exceptions')[2]
    table = exceptions.partition('\n## ')[0]
    listed = set()
    for line in re.findall(r'(?m)^\| (`.*)$', table):
      algorithms, registers = map(NAMES.findall, line.split(' | ')[:2])
      listed |= {(a, r) for a in algorithms for r in registers}
    declared = set()
    for name, row in TABLE.items():
      for register in row.make().names.resized:
        scope, _, own = register.rpartition('.')
        algorithm = scope.partition('.')[0] or ALGORITHM_OF[name.split('_')[0]]
        declared.add((algorithm, own))
    self.assertEqual(listed, declared)


class EpochsTest(parameterized.TestCase):
  """--num_epochs count the examples that all replicas have seen."""

  @parameterized.parameters(
    (((0, 8), (10, 4)), 2, 10 + 20),  # an epoch of 10 steps, one of 20
    (((0, 8), (10, 4)), 0.5, 5),
    (((0, 8), (5, 16), (10, 4)), 2, 10 + 10),  # 0.5, 1 and 0.5 epochs
    ((), 1, 20),
  )
  def test_steps_of_epochs(self, sizes, epochs, steps):
    n = sizes[-1][1] if sizes else 4
    config = dataclasses.replace(
      DEFAULTS,
      num_replicas=n,
      batch_size=16,
      num_steps=None,
      num_epochs=epochs,
      sizes=sizes,
    )
    self.assertEqual(run_config.total_steps(config, 1280), steps)


if __name__ == '__main__':
  absltest.main()
