"""Tests of `experiments/running/execution/experiment.py`."""

import dataclasses

from absl.testing import absltest, parameterized
import chex
import jax
import numpy as np
import optax

from experiments.running.execution import experiment, parts
from experiments.running.flags import config
import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.models.classification import classifier
from tests import stage_harness
from tests.config_test import DEFAULTS


def build_plan(algorithm, **changes):
  """The plan of a run on 1280 examples: 20 steps of 8 x 16 or 40 of 4 x 16."""
  names = {field.name for field in dataclasses.fields(DEFAULTS)}
  fields = {k: v for k, v in changes.items() if k in names}
  options = {k: v for k, v in changes.items() if k not in names}
  changed = dataclasses.replace(
    DEFAULTS, algorithm=algorithm, options=options, **fields
  )
  return experiment.build_plan(config.check(changed), 1280)


def trajectory(algorithm, num_steps):
  """[(params [4, 3], momentum)] of each step, of four unlike replicas."""
  mesh = pr.engine.ReplicaMesh(4, 1)
  state = pr.engine.create_train_state(
    mesh, algorithm, np.zeros(3, np.float32), stage_harness.MODEL_STATE
  )
  train_steps = pr.engine.make_train_steps(
    mesh, algorithm, stage_harness.linear_loss
  )
  found = []
  for seed in range(num_steps):
    batch, _ = stage_harness.batches(mesh, 1, seed)
    state, _ = train_steps(state, batch)
    traces = [
      leaf
      for leaf in jax.tree.leaves(mesh.gather(state.opt_state))
      if leaf.shape == (4, 3)
    ]
    found.append((mesh.gather(state.params), traces[0]))
  return found


def fires(plan):
  """The steps of the only message of an algorithm."""
  steps = np.arange(plan.num_steps)
  costs = plan.algorithm.cost(pr.base.Replica(np.zeros(1)), 8, steps)
  (sent,) = [c for c in costs if isinstance(c, pr.base.Traffic)]
  return np.flatnonzero(sent.fires).tolist()


def assemble(algorithm, network=None, **changes):
  """The parts of a run on 1280 images that are all zero."""
  names = {field.name for field in dataclasses.fields(DEFAULTS)}
  fields = {k: v for k, v in changes.items() if k in names}
  options = {k: v for k, v in changes.items() if k not in names}
  run = dataclasses.replace(
    DEFAULTS, algorithm=algorithm, options=options, **fields
  )
  split = {
    'image': np.zeros((1280, 8, 8, 1), np.uint8),
    'label': np.zeros(1280, np.int32),
  }
  dataset = pr.data.Dataset('digits', split, split, 10)
  return experiment.assemble(run, dataset, 1, network or pr.ledger.Network())


class FirstPointTest(absltest.TestCase):
  def test_is_the_same_bits_however_it_is_compiled(self):
    # The optimizations of a run, which the tests turn off.
    name = 'jax_disable_most_optimizations'
    self.addCleanup(jax.config.update, name, True)
    jax.config.update(name, False)
    self.assertTrue(parts.quick())
    task = classifier(models.MLP(num_classes=3, hidden=(4,)))
    arguments = jax.random.key(0), {'image': np.zeros((1, 5), np.float32)}
    one, other = (
      jax.jit(task.init, compiler_options=options)(*arguments)
      for options in (None, parts.quick())
    )
    chex.assert_trees_all_equal(one, other)


class PlanTest(parameterized.TestCase):
  @parameterized.parameters(
    ('k_avg', {'period': 4}, [3, 7]),
    ('hier_avg', {'local_period': 2, 'global_period': 4, 'group_size': 2},
     [1, 3, 5, 7]),
    ('post_local_sgd', {'switch_step': 2, 'period': 4}, [0, 1, 5]),
    ('hierarchical_local_sgd',
     {'period': 2, 'block_steps': 2, 'group_size': 2}, [1, 3, 5, 7]),
    ('hierarchical_local_sgd',
     {'period': 2, 'block_steps': 2, 'group_size': 2, 'switch_step': 3},
     [0, 1, 2, 4, 6, 8]),
    ('multi_level_avg', {'periods': '2,4', 'group_sizes': '2'}, [1, 3, 5, 7]),
    ('pr_sgd_heterogeneous', {'local_steps': '1,4,2,4'}, [3, 7]),
    ('pr_sgd_time_varying', {'epoch_lengths': '1,2,3'}, [0, 2, 5, 8]),
  )  # fmt: skip
  def test_buffers_start_anew_after_the_averages(self, name, options, steps):
    plan = build_plan(name, buffers='reset', num_replicas=4, **options)
    buffers = [b for _, b in trajectory(plan.algorithm, 9)]
    reset = [step for step, b in enumerate(buffers) if not b.any()]
    self.assertEqual(reset, steps)

  @parameterized.parameters(
    ('k_avg', {'period': 2}),
    ('pr_sgd', {'when': 'every:2'}),
    ('d_psgd', {'mixing': 'mean'}),
    ('hier_avg', {'local_period': 1, 'global_period': 2, 'group_size': 2}),
    ('fedavg', {'period': 2}),
  )
  def test_buffers_are_averaged(self, name, options):
    plan = build_plan(name, buffers='average', num_replicas=4, **options)
    _, buffers = trajectory(plan.algorithm, 2)[-1]
    # In order A the step comes after the average.
    alike = name in ('k_avg', 'hier_avg', 'fedavg')
    self.assertEqual(np.ptp(buffers, axis=0).max() == 0, alike)
    kept = build_plan(name, buffers='keep', num_replicas=4, **options)
    _, local = trajectory(kept.algorithm, 2)[-1]
    self.assertGreater(np.ptp(local, axis=0).max(), 0)
    self.assertGreater(np.abs(buffers - local).max(), 0)

  def test_federated_buffers_start_anew_unless_told_otherwise(self):
    default = build_plan('fedavg', period=2, num_replicas=4)
    self.assertFalse(trajectory(default.algorithm, 2)[-1][1].any())
    keep = build_plan('fedavg', period=2, buffers='keep', num_replicas=4)
    self.assertTrue(trajectory(keep.algorithm, 2)[-1][1].any())
    ring = build_plan('fedavg', period=2, average_mixing='ring', num_replicas=4)
    points, buffers = trajectory(ring.algorithm, 2)[-1]
    self.assertGreater(np.ptp(points, axis=0).max(), 0)
    self.assertFalse(buffers.any())

  def test_buffers_of_a_preconditioner_start_anew(self):
    options = {'period': 2, 'buffers': 'reset', 'rank': 1, 'num_replicas': 4}
    plan = build_plan('natural_gradient_averaging', **options)
    self.assertFalse(trajectory(plan.algorithm, 2)[-1][1].any())

  @parameterized.parameters(
    ('k_avg', {'period': 2, 'average_mixing': 'ring'},
     lambda tx: pr.k_avg(tx, period=2, average=pr.sync(pr.graphs.ring()))),
    ('diloco',
     {'period': 2, 'average_codec': 'feedback:0.9:top_k:0.4'},
     lambda tx: pr.diloco(tx, period=2, average=pr.stages.average_differences(
       pr.codecs.feedback(pr.codecs.top_k(0.4), decay=0.9)))),
    ('slowmo',
     {'period': 2, 'slow_momentum': 0.5, 'local': 'sgp:ring'},
     lambda tx: pr.slowmo(
       pr.sgp(tx, mixing=pr.graphs.ring()), period=2, slow_momentum=0.5,
       learning_rate=0.1)),
    ('diloco', {'period': 4, 'local': 'k_avg:2:group_mean:2'},
     lambda tx: pr.diloco(
       pr.k_avg(tx, period=2, average=pr.sync(pr.mixing.group_mean(2))),
       period=4)),
    ('k_avg', {'when': 'intervals:1+3'},
     lambda tx: pr.k_avg(tx, period=pr.schedules.intervals([1, 3]))),
    ('dynamic_averaging', {'when': 'every:2', 'threshold': 0.1},
     lambda tx: pr.dynamic_averaging(tx, check_period=2, threshold=0.1)),
    ('diffusion', {'when': 'at:2'},
     lambda tx: pr.diffusion(tx, period=pr.schedules.at_steps([2]))),
  )  # fmt: skip
  def test_flags_multiply(self, name, options, make):
    plan = build_plan(name, num_replicas=4, **options)
    found = trajectory(plan.algorithm, 5)
    expected = trajectory(make(optax.sgd(0.1, momentum=0.9)), 5)
    np.testing.assert_array_equal(found[-1][0], expected[-1][0])

  @parameterized.parameters(
    ('k_avg', {'average_codec': 'top_k:0.1', 'period': 2},
     '--average_codec sends differences from x0, .*k_avg does not store'),
    ('k_avg', {'when': 'qsr:0.1'}, "missing a required argument: 'base_period"),
    ('k_avg', {'when': 'qsr:0:4'}, 'alpha must be > 0'),
    ('k_avg', {'when': 'dubling:4'}, 'unknown --when=dubling:4; use one of ev'),
    ('k_avg', {'when': 'doubling:4:1:1'}, '--when=doubling:4:1:1: too many'),
    ('k_avg', {'when': 'doubling:x'}, "--when expects float numbers, got 'x'"),
    ('k_avg', {'when': 'doubling:2.5'}, 'first must be an integer >= 1, got 2'),
    ('k_avg', {'when': 'at'}, '--when=at: at needs a list, such as at:3'),
    ('k_avg', {'when': 'at:'}, "--when expects float numbers, got ''"),
    ('k_avg', {'when': 'with_probability:2'}, r'probability must be in \[0, 1'),
    ('slowmo', {'period': 2, 'slow_momentum': 0.5, 'local': 'sgd'},
     'unknown --local=sgd; use one of k_avg, d_psgd'),
    ('slowmo', {'period': 2, 'slow_momentum': 0.5, 'local': 'd_psgd:4'},
     "--local=d_psgd:4: got an unexpected keyword argument 'period'"),
    ('slowmo', {'period': 2, 'slow_momentum': 0.5, 'local': 'k_avg'},
     "--local=k_avg: missing a required argument: 'period'"),
    ('pr_sgd_heterogeneous', {'local_steps': '1,2', 'local': 'sgp'},
     'where expects stages that do not communicate'),
    ('diloco', {'period': 2, 'average_codec': 'feedback'},
     '--average_codec=feedback: feedback needs a compressor, such as feedback'),
    ('diloco', {'period': 2, 'average_codec': 'feedback:2:signs'},
     r'decay must be in \[0, 1\], got 2'),
    ('diloco', {'period': 2, 'average_codec': 'topk'},
     'unknown --average_codec=topk; use one of .*top_k.*feedback'),
    ('k_avg', {'period': 2, 'average_mixing': 'rung'},
     'unknown --average_mixing=rung; use one of ring'),
  )  # fmt: skip
  def test_refused_in_one_line(self, name, options, message):
    with self.assertRaisesRegex(ValueError, message) as raised:
      build_plan(name, num_replicas=4, **options)
    self.assertNotIn('\n', str(raised.exception))

  @parameterized.parameters(
    ('every:8', [7, 15]),
    ('doubling:2', [1, 5, 13]),
    ('doubling:2:2', [1, 3, 7, 11, 19]),
    ('linear_growth:2:3', [1, 6, 14]),
    ('at:3+7+11', [3, 7, 11]),
    ('at:3,7', [3, 7]),
    ('post_local:2:8', [0, 1, 9, 17]),
    ('intervals:1+2+4', [0, 2, 6, 10, 14, 18]),
    # 0.1 for half of the run, then 0.01; the warm-up ends at step 5.
    ('qsr:0.2:3', [3, 7, 11, 19]),
    ('with_probability:0', []),
    ('with_probability:1', list(range(20))),
  )
  def test_when(self, when, steps):
    changed = dataclasses.replace(
      DEFAULTS,
      options={'when': when},
      learning_rate_drops=(1.0,),
      warmup_epochs=0.5,
    )
    plan = experiment.build_plan(config.check(changed), 1280)
    self.assertEqual(fires(plan), steps)

  def test_chance_has_the_seed_of_the_run(self):
    one, same, other = (
      fires(build_plan('k_avg', when='with_probability:0.5', seed=seed))
      for seed in (1, 1, 2)
    )
    self.assertEqual(one, same)
    self.assertNotEqual(one, other)

  def test_participants_have_the_seed_of_the_run(self):
    def workers(seed):
      plan = build_plan('fedavg', period=4, participation=0.5, seed=seed)
      shapes = pr.base.Replica(params=np.zeros(2, np.float32))
      work, _ = plan.algorithm.cost(shapes, 8, np.arange(20))
      return work.active

    np.testing.assert_array_equal(workers(1), workers(1))
    self.assertTrue((workers(1) != workers(2)).any())

  def test_the_theorys_schedule_is_its_own(self):
    config_ = dataclasses.replace(
      DEFAULTS,
      algorithm='pr_sgd_time_varying',
      options={'epoch_lengths': 'theory'},
      learning_rate_drops=(1.0,),
    )
    with self.assertRaisesRegex(ValueError, 'learning rate of its own'):
      experiment.build_plan(config.check(config_), 1280)

  def test_eamsgd_has_the_momentum_for_itself(self):
    build_plan('eamsgd', period=4, alpha=0.1)
    with self.assertRaisesRegex(ValueError, 'nesterov does nothing'):
      changed = dataclasses.replace(
        DEFAULTS,
        algorithm='eamsgd',
        options={'period': 4, 'alpha': 0.1},
        nesterov=True,
      )
      config.check(changed)

  def test_epochs_are_those_of_the_gradients_taken(self):
    # 8 replicas of batch 16; half of them take one step of two.
    def epochs(algorithm, **options):
      parts = assemble(algorithm, num_steps=20, **options)
      (spent,) = pr.ledger.spent_at(parts.meter, [20])
      return parts.epoch(spent.gradients)

    self.assertEqual(epochs('k_avg', period=4), 2.0)
    unequal = epochs('pr_sgd_heterogeneous', local_steps='1,1,1,1,2,2,2,2')
    self.assertEqual(unequal, 1.5)

  @parameterized.parameters(
    ({}, '--num_epochs must be'),
    ({'num_steps': 20, 'learning_rate_drops': (1.0,)}, '--learning_rate_drops'),
    ({'warmup_epochs': 1.0}, '--num_epochs and --warmup_epochs must be'),
  )
  def test_epochs_are_not_counted_where_replicas_rest(self, fields, message):
    with self.assertRaisesRegex(ValueError, f'{message}.* do at 75% of them'):
      assemble('pr_sgd_heterogeneous', local_steps='1,1,1,1,2,2,2,2', **fields)

  def test_asynchronous_replicas_have_their_own_speeds_on_the_clock(self):
    options = {'speeds': '2,2,2,2,1,1,1,1', 'num_steps': 4}
    own = assemble('ad_psgd', **options)
    self.assertEqual(own.network.speeds, (2, 2, 2, 2, 1, 1, 1, 1))
    slower = pr.ledger.Network(speeds=(1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5))
    same = assemble('ad_psgd', slower, **options)
    self.assertEqual(same.network, slower)
    for speeds in ((1,) * 8, (1, 2)):
      with self.assertRaisesRegex(ValueError, 'in the ratios of --speeds=2,2'):
        assemble('ad_psgd', pr.ledger.Network(speeds=speeds), **options)


if __name__ == '__main__':
  absltest.main()
