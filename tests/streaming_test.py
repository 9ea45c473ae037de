"""`streaming_diloco`: which fragment, when it is sent, when it arrives."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.algorithms import streaming
from tests import harness, reference

N = 4


SGD = optax.sgd(1.0)


def stream(outer=SGD, local=SGD, **options):
  options = {'fragments': 1, 'delay': 0, 'alpha': 0.0, **options}
  return pr.streaming_diloco(local, outer=outer, **options)


def fires(algorithm, shapes, num_steps):
  """For each fragment, the steps t = 1 .. when it is sent, and its bytes."""
  work, *costs = algorithm.cost(
    pr.base.Replica(params=shapes), N, np.arange(num_steps)
  )
  del work
  scale = 2 * (N - 1) / N
  return [
    ((np.flatnonzero(c.fires) + 1).tolist(), c.bytes_sent / scale)
    for c in costs
  ]


def shapes_of(**sizes):
  return {
    name: jax.ShapeDtypeStruct((size,), np.float32)
    for name, size in sizes.items()
  }


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    (6, 1, [[6, 12]]),
    (6, 2, [[3, 9], [6, 12]]),
    (6, 3, [[2, 8], [4, 10], [6, 12]]),
    (5, 2, [[2, 7, 12], [5, 10]]),
    (2, 2, [[1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10, 12]]),
    (1, 1, [list(range(1, 13))]),
  )
  def test_fragments_are_spread_over_the_period(self, period, count, steps):
    shapes = shapes_of(a=1, b=2, c=3)
    got = fires(stream(period=period, fragments=count), shapes, 12)
    self.assertEqual([s for s, _ in got], steps)

  def test_each_sends_its_own_bytes(self):
    shapes = shapes_of(a=1, b=2, c=3, d=10)
    got = fires(stream(period=4, fragments=2), shapes, 4)
    self.assertEqual([sent for _, sent in got], [4 * (1 + 3), 4 * (2 + 10)])

  def test_layers_are_dealt_out_whole(self):
    params = {
      f'layer_{i}': {'bias': np.zeros(1), 'kernel': np.zeros((2, 2))}
      for i in range(5)
    }
    first, second = streaming._fragments(2, 100)
    self.assertEqual(first(params), [0, 1, 4, 5, 8, 9])
    self.assertEqual(second(params), [2, 3, 6, 7])
    (whole,) = streaming._fragments(1, 100)
    self.assertEqual(whole(np.zeros(3)), [0])

  def test_layers_may_be_named(self):
    shapes = shapes_of(a=1, b=2, c=3, d=10)
    named = [['b', 'd'], ['a', 'c']]
    got = fires(stream(period=4, fragments=named), shapes, 4)
    self.assertEqual([sent for _, sent in got], [4 * (2 + 10), 4 * (1 + 3)])
    dealt = fires(stream(period=4, fragments=2), shapes, 4)
    same = fires(stream(period=4, fragments=named[::-1]), shapes, 4)
    self.assertEqual(same, dealt)


def walk(params, model_state, batch, key):
  """The gradient of every leaf is the batch, a number."""
  del key
  loss = batch * sum(x.sum() for x in jax.tree.leaves(params))
  return loss, (model_state, {})


def trajectory(algorithm, start, num_steps, rates=(1.0, 2.0, 3.0, 4.0)):
  """Each leaf as [num_steps, N, ...]: x_i falls by rates[i] in a step."""
  mesh = pr.engine.ReplicaMesh(N, 2)
  state = pr.engine.create_train_state(mesh, algorithm, start)
  train_steps = pr.engine.make_train_steps(mesh, algorithm, walk)
  batch = mesh.place_per_device(np.float32(rates).reshape(2, 1, 2))
  points = []
  for _ in range(num_steps):
    state, _ = train_steps(state, batch)
    points.append(mesh.gather(state.params))
  return jax.tree.map(lambda *xs: np.stack(xs), *points)


class MergeTest(parameterized.TestCase):
  RATES = np.array([1.0, 2.0, 3.0, 4.0])

  def test_a_mean_comes_late_and_what_was_done_meanwhile_is_lost(self):
    x = trajectory(stream(period=3, delay=2), np.zeros(1, np.float32), 8)[
      ..., 0
    ]
    # Sent at t = 3: -7.5; at t = 5 all are there; sent at t = 6, one step on.
    for t in (1, 2, 3, 4):
      np.testing.assert_array_equal(x[t - 1], -t * self.RATES)
    np.testing.assert_array_equal(x[4], np.full(N, -7.5))
    for t in (6, 7):
      np.testing.assert_array_equal(x[t - 1], -7.5 - (t - 5) * self.RATES)
    np.testing.assert_array_equal(x[7], np.full(N, -7.5 - 2.5))

  def test_local_parameters_keep_their_part(self):
    x = trajectory(
      stream(period=3, delay=1, alpha=0.25), np.zeros(1, np.float32), 4
    )[..., 0]
    np.testing.assert_allclose(x[3], 0.25 * -4 * self.RATES + 0.75 * -7.5)

  def test_fragments_are_on_their_own(self):
    start = {'a': np.zeros(1, np.float32), 'b': np.zeros(1, np.float32)}
    x = trajectory(stream(period=4, fragments=2), start, 6)
    equal = {
      name: [t for t in range(1, 7) if (leaf[t - 1] == leaf[t - 1, 0]).all()]
      for name, leaf in x.items()
    }
    self.assertEqual(equal, {'a': [2, 6], 'b': [4]})

  def test_nothing_arrives_that_was_not_sent(self):
    # t = 1 is 2 + 3 mod 4, but what would arrive then was sent at t = -2.
    start = {'a': np.zeros(1, np.float32), 'b': np.zeros(1, np.float32)}
    x = trajectory(stream(period=4, fragments=2, delay=3), start, 5)
    for t in (1, 2, 3, 4):
      np.testing.assert_array_equal(x['a'][t - 1, :, 0], -t * self.RATES)
    np.testing.assert_array_equal(x['a'][4, :, 0], np.full(N, -5.0))

  def test_every_fragment_has_its_outer_buffers(self):
    outer = optax.sgd(1.0, momentum=0.5)
    start = {'a': np.zeros(1, np.float32), 'b': np.zeros(1, np.float32)}
    x = trajectory(stream(outer, period=2, fragments=2), start, 5)
    # a: -2.5 at t = 1, then by steps of mean 5 and half of the step before.
    np.testing.assert_allclose(x['a'][0], -2.5)
    np.testing.assert_allclose(x['a'][2], -2.5 - (5 + 1.25))
    np.testing.assert_allclose(x['b'][1], -5)
    np.testing.assert_allclose(x['b'][3], -5 - (5 + 2.5))


class ProgramTest(parameterized.TestCase):
  def test_each_fragment_is_sent_in_a_conditional_of_its_own(self):
    mesh = pr.engine.ReplicaMesh(N, N)
    algorithm = stream(period=4, fragments=2, delay=1, alpha=0.5)
    start = {'a': np.zeros(3, np.float32), 'b': np.zeros(5, jnp.bfloat16)}
    state = pr.engine.create_train_state(mesh, algorithm, start)
    train_steps = pr.engine.make_train_steps(mesh, algorithm, walk)
    batch = mesh.place_per_device(np.zeros((N, 1, 1), np.float32))
    sent = harness.collectives_of(train_steps, state, batch)
    self.assertEqual([s.conditional for s in sent], [True, True])
    operands = [x for s in sent for x in s.operands]
    self.assertEqual([x.size for x in operands], [3, 5])
    self.assertEqual({x.dtype for x in operands}, {np.dtype(np.float32)})

  def test_does_not_depend_on_the_layout(self):
    problem = reference.make_problem(8, 12)
    algorithm = stream(
      optax.adam(0.1),
      optax.adam(0.05),
      period=4,
      fragments=2,
      delay=1,
      alpha=0.5,
    )
    one = harness.run_problem(algorithm, problem, 1).x
    eight = harness.run_problem(algorithm, problem, 8).x
    np.testing.assert_allclose(one, eight, rtol=0, atol=1e-12)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'fragments': 5}, 'fragments must be at most period = 4, .* got 5'),
    ({'fragments': 2**31, 'period': 2**32}, 'at most 1024, got 2147483648'),
    ({'fragments': 0}, 'fragments must be an integer >= 1, got 0'),
    ({'delay': 4}, 'delay must be less than period = 4, got 4'),
    ({'fragments': [['a'], []]}, r'layer names .* got \[\[.a.\], \[\]\]'),
    ({'codec': 'e3m0'}, "got 'e3m0'"),
    ({'delay': -1}, r'delay must be .* got -1'),
    ({'delay': 1.0}, r'delay must be .* got 1.0'),
    ({'delay': True}, r'delay must be .* got True'),
    ({'alpha': 1.0}, r'alpha must be in \[0, 1\), got 1.0'),
    ({'alpha': -0.1}, r'alpha must be in \[0, 1\), got -0.1'),
  )
  def test_arguments_are_in_range(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      stream(**{'period': 4, **options})

  def test_a_fragment_has_a_layer(self):
    with self.assertRaisesRegex(
      ValueError, 'fragments must be at most the number of layers, 2 .*, got 3'
    ):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N),
        stream(period=4, fragments=3),
        {'a': np.zeros(1), 'b': np.zeros(1)},
      )

  @parameterized.parameters(
    ([['a']], r"each of the layers \['a', 'b'\] once, got \['a'\]"),
    ([['a', 'b'], ['b']], r"once, got \['a', 'b', 'b'\]"),
  )
  def test_every_layer_is_in_one_fragment(self, fragments, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N),
        stream(period=4, fragments=fragments),
        {'a': np.zeros(1), 'b': np.zeros(1)},
      )


if __name__ == '__main__':
  absltest.main()
