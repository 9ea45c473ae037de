"""Tests of `experiments/running/execution/objects.py`."""

import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.execution import objects
from experiments.running.records import records
from experiments.tools import figures
import prsgd_jax as pr
from prsgd_jax.models.classification import Task


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))


def soft(local, *, period):
  """Half of the way to the mean."""
  return pr.algorithm(
    'soft',
    pr.step(local),
    pr.at(
      pr.schedules.every(period),
      pr.let(xbar='params'),
      pr.sync(pr.mixing.mean(), 'xbar'),
      pr.let(params=lambda params, xbar: (params + xbar) / 2),
    ),
  )


def blobs(num_examples, seed):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 3, num_examples)
  image = rng.normal(size=(num_examples, 5)) + 3 * label[:, None]
  return {'image': image.astype(np.float32), 'label': label.astype(np.int32)}


LINE = Task(
  init=lambda key, batch: (jnp.zeros(2), {}),
  loss_fn=lambda w, state, batch, key: (
    jnp.square(batch['x'] @ w - batch['y']).mean(),
    (state, {}),
  ),
  eval_fn=None,
)


class ObjectsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def run_own(self, name, num_steps, **changes):
    arguments = {
      'algorithm': soft(optax.sgd(0.05), period=2), 'model': Net(),
      'data': blobs(200, 0), 'test_data': blobs(60, 1), 'num_replicas': 2,
      'batch_size': 8, 'label': 'soft', 'settings': {'period': 2},
      'learning_rate': np.float32(0.05), 'log_every': 2, 'eval_every': 4,
      'checkpoint_every': 4, 'progress': False, **changes,
    }  # fmt: skip
    workdir = self.root / name
    summary = objects.run(num_steps=num_steps, workdir=workdir, **arguments)
    return workdir, summary

  def test_own_objects_have_logs_resume_ledger_and_figures(self):
    whole, summary = self.run_own('whole', 8)
    # 5 * 4 + 4 + 4 * 3 + 3 parameters of 4 bytes, in every second step; two
    # replicas send half of each twice.
    self.assertEqual(summary['rounds'], 4)
    self.assertEqual(summary['bytes_sent'], 4 * 39 * 4)
    self.assertEqual(summary['epoch'], 8 * 2 * 8 / 200)
    self.assertEqual(summary['learning_rate'], 0.05)
    self.assertIn('test_accuracy', summary)
    parts, _ = self.run_own('parts', 4)
    parts, _ = self.run_own('parts', 8)
    kept = [
      [{**record, 'seconds': 0} for record in records.read_records(workdir)]
      for workdir in (whole, parts)
    ]
    self.assertEqual(kept[0], kept[1])
    self.assertEqual([record['step'] for record in kept[0]], [2, 4, 6, 8])
    found = figures.read_runs(figures.find_runs([whole]))
    self.assertEqual([run.label for run in found], ['soft'])
    figures.draw(found, self.root / 'figure.png')
    self.assertTrue((self.root / 'figure.png').exists())
    with self.assertRaisesRegex(ValueError, '--period=2.*--period=3'):
      self.run_own('parts', 8, settings={'period': 3})
    with self.assertRaisesRegex(ValueError, 'holds a run on other data'):
      self.run_own('parts', 8, data=blobs(200, 2))

  @mock.patch.object(pr.ledger.counting, 'SPAN', 2)
  def test_a_resumed_run_counts_only_the_steps_that_are_new(self):
    own, asked = soft(optax.sgd(0.05), period=2), []

    def cost(shapes, num_replicas, steps):
      asked.extend(steps.tolist())
      return own.cost(shapes, num_replicas, steps)

    x = np.ones((64, 2), np.float32)
    for num_steps in (12, 14):
      asked.clear()
      self.run_own(
        'long', num_steps, algorithm=own._replace(cost=cost), model=LINE,
        data={'x': x, 'y': x[:, 0]}, test_data=None, checkpoint_every=12,
      )  # fmt: skip
    # The first span for the kinds of costs, then those after step 12.
    self.assertEqual(asked, [0, 1, 12, 13])

  def test_any_loss_on_any_arrays_without_a_test_split(self):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    _, summary = self.run_own(
      'line', 8, model=LINE, data={'x': x, 'y': x @ np.float32([1, 2])},
      test_data=None, algorithm=pr.k_avg(optax.sgd(0.2), period=2),
      learning_rate=None, partition=pr.sharded,
    )  # fmt: skip
    self.assertLess(summary['loss'], 1)  # that of zeros is 5
    absent = {'test_loss', 'test_accuracy', 'learning_rate'}
    self.assertEqual(absent & {*summary}, set())

  @parameterized.parameters(
    ({'model': 3}, 'model must be a flax linen module or a Task, got 3'),
    ({'data': {'x': np.zeros(4)}}, 'must have the arrays image and label'),
    ({'data': {}}, 'data must be a tree of arrays of one length >= 1, got'),
    ({'data': {'image': np.zeros((3, 2)), 'label': np.zeros(2)}},
     'data must be a tree of arrays of one length >= 1, got'),
    ({'data': pr.data.Dataset('blobs', blobs(9, 0), blobs(9, 0), 3)},
     'leave out test_data'),
    ({'data': {**blobs(9, 0), 'label': np.arange(1, 10) % 4}},
     r'data: label must be integers in 0 .. num_classes - 1 = 2, got .* in 0 '),
    ({'data': {**blobs(9, 0), 'name': list('abcdefghi')}},
     'data: name must be an array of numbers, got <U1'),
    ({'test_data': {'image': np.zeros((9, 5))}},
     'data and test_data must have arrays of the same names'),
    ({'model': nn.Sequential([nn.Dense(3), lambda x: x[:, None]])},
     'model must return logits .1, num_classes.'),
    ({'algorithm': optax.sgd(0.1)}, 'algorithm must be one of prsgd_jax'),
    ({'algorithm': soft}, 'algorithm must be one of prsgd_jax'),
    ({'learning_rate': '0.1'}, 'learning_rate must be a finite number or a'),
    ({'num_steps': 0}, 'num_steps must be >= 1, got 0'),
    ({'label': ''}, "label must be a text, got ''"),
    ({'settings': {'a': np.float32(1)}}, 'settings must be a dict of finite'),
    ({'settings': {'a': float('nan')}}, 'settings must be a dict of finite'),
    ({'settings': {1: 2}}, 'settings must be a dict of finite'),
    ({'eval_every': 3}, 'eval_every must be a multiple'),
    ({'batch_size': 200}, 'is larger than the 200 examples'),
    ({'partition': lambda arrays, **sizes: arrays},
     'a run expects data such as pr.shared'),
  )  # fmt: skip
  def test_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self.run_own('refused', **{'num_steps': 8, **changes})

  def test_it_defines_no_flag_of_a_run(self):
    # Because a program that has flags of these names is to import it.
    program = (
      'from experiments.running.execution import objects; '
      'from absl import flags; '
      "print({'seed', 'model', 'batch_size'} & {*flags.FLAGS})"
    )
    done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True,
      check=True,
    )  # fmt: skip
    self.assertEqual(done.stdout, 'set()\n')


if __name__ == '__main__':
  absltest.main()
