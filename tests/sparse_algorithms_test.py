"""SparseLoCo, DeMo, SPARTA, PowerSGD: identities, costs and errors."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from tests import algorithms_test as laws
from tests import harness, reference
from tests.compressed_algorithms_test import final, row, run
from tests.rows import PLAIN, SGD, N, T
from tests.rows.sparse import DECAY, LAYERS, first_factor

WHOLE = pr.codecs.uncompressed()
SIGNS = pr.let(grads=lambda grads: jnp.sign(grads))


def apart(one, other):
  return np.abs(one - other).max()


def bytes_sent(algorithm, params, num_steps=1):
  """Bytes that one replica sends."""
  state = harness.state_types(pr.engine.ReplicaMesh(N), algorithm, params)
  shapes = pr.engine.replica_shapes(state)
  return pr.ledger.account(algorithm, shapes, N, num_steps).bytes_sent[-1]


class SparseLoCoTest(parameterized.TestCase):
  def loco(self, **options):
    return final(pr.sparse_loco(SGD, period=4, **options))

  def test_of_all_entries_without_memory_it_is_k_avg(self):
    for compressor in (WHOLE, pr.codecs.chunked_top_k(4096)):
      got = self.loco(compressor=compressor, decay=0.0)
      laws.assert_close(got, row('k_avg_4'))

  def test_without_decay_it_is_qsparse(self):
    got = self.loco(compressor=pr.codecs.top_k(0.5), decay=1.0)
    laws.assert_close(got, row('qsparse_local_sgd'))

  def test_with_decay_it_is_not(self):
    for decay in (0.0, 0.9):
      got = self.loco(compressor=pr.codecs.top_k(0.5), decay=decay)
      self.assertGreater(apart(got, row('qsparse_local_sgd')), 1e-3)

  def test_it_is_diloco_of_codes_with_plain_sgd(self):
    average = pr.stages.average_differences(
      pr.codecs.feedback(pr.codecs.top_k(0.5), decay=0.9)
    )
    diloco = pr.diloco(SGD, period=4, outer=optax.sgd(0.8), average=average)
    got = self.loco(
      compressor=pr.codecs.top_k(0.5), decay=0.9, outer_learning_rate=0.8
    )
    laws.assert_close(got, final(diloco))

  def test_the_mean_over_senders_is_another_algorithm(self):
    # Unless all send all.
    sent = {'compressor': WHOLE, 'decay': 0.0}
    laws.assert_close(self.loco(**sent, senders_only=True), self.loco(**sent))
    self.assertGreater(
      apart(row('sparse_loco'), row('sparse_loco_senders')), 1e-2
    )

  def test_by_default_64_of_4096_entries_travel_in_14_bits(self):
    algorithm = pr.sparse_loco(SGD, period=3)
    got = bytes_sent(algorithm, np.zeros((128, 128), np.float32), 6)
    # Values of two bits and places of twelve, and the means of four bins.
    self.assertEqual(got, 2 * (N - 1) * (4 * 64 * (2 + 12) / 8 + 4 * 4))

  @parameterized.parameters(
    ({'decay': 1.5}, r'decay must be in \[0, 1\], got 1.5'),
    ({'outer_learning_rate': 0}, 'outer_learning_rate must be > 0, got 0'),
    ({'compressor': 0.1}, 'expected a compressor such as'),
    ({'period': 0}, 'period must be an integer >= 1, got 0'),
  )
  def test_arguments_are_checked(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.sparse_loco(SGD, **{'period': 4, **options})


class DeMoTest(parameterized.TestCase):
  def unsigned(self, num_kept, decay):
    codec = pr.codecs.feedback(pr.codecs.chunked_top_k(num_kept), decay)
    return pr.chain(
      pr.gradient(),
      pr.sync(pr.mixing.mean(), 'grads', codec=pr.codecs.frequencies(codec)),
      pr.local_update(SGD),
    )

  @parameterized.parameters(0.0, 0.9)
  def test_of_all_frequencies_without_signs_it_is_ssgd(self, decay):
    # All momentum is sent at once, so that none is left to decay.
    laws.assert_close(final(self.unsigned(4, decay)), row('ssgd'))

  @parameterized.parameters(0.0, 0.9)
  def test_of_all_frequencies_it_is_the_sign_of_the_mean(self, decay):
    signed = pr.chain(
      pr.gradient(),
      pr.sync(pr.mixing.mean(), 'grads'),
      SIGNS,
      pr.local_update(SGD),
    )
    got = pr.demo(SGD, num_kept=4, decay=decay)
    laws.assert_close(final(got), final(signed))

  def test_of_some_frequencies_it_is_neither(self):
    self.assertGreater(apart(final(self.unsigned(1, 0.0)), row('ssgd')), 1e-3)

  def test_entries_and_frequencies_are_different(self):
    codec = pr.codecs.feedback(pr.codecs.chunked_top_k(1), DECAY)
    entries = pr.chain(
      pr.gradient(),
      pr.sync(pr.mixing.mean(), 'grads', codec=codec),
      SIGNS,
      pr.local_update(SGD),
    )
    self.assertGreater(apart(final(entries), row('demo')), 1e-2)
    self.assertGreater(apart(row('demo'), row('demo_senders')), 1e-2)

  def test_bytes(self):
    # 32 of the 4096 frequencies of each of 4 chunks, with places of 12 bits.
    got = bytes_sent(pr.demo(PLAIN), np.zeros((128, 128), np.float32))
    self.assertEqual(got, (N - 1) * 4 * 32 * (4 + 1.5))

  @parameterized.parameters(
    ({'num_kept': 0}, 'num_kept must be an integer >= 1, got 0'),
    ({'chunk': 2.0}, 'chunk must be an integer >= 1, got 2.0'),
    ({'decay': -1}, r'decay must be in \[0, 1\], got -1'),
  )
  def test_arguments_are_checked(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.demo(SGD, **options)


class SpartaTest(parameterized.TestCase):
  def test_of_all_entries_it_is_a_mean_at_each_step(self):
    laws.assert_close(final(pr.sparta(SGD, fraction=1.0)), row('k_avg_1'))
    self.assertGreater(apart(row('sparta'), row('k_avg_1')), 1e-3)

  def test_around_an_algorithm(self):
    got = pr.sparta(pr.diloco(SGD, period=4), fraction=0.5)
    self.assertGreater(apart(final(got), row('diloco')), 1e-3)
    rounds = pr.sparta(pr.k_avg(SGD, period=4), fraction=1.0)
    laws.assert_close(final(rounds), row('k_avg_1'))

  def test_just_the_share_of_entries_is_equal_after_a_step(self):
    x = laws.trajectory('sparta').x[1:]
    equal = (x == x[:, :1]).all(axis=1)
    for layer in LAYERS:
      count = (layer.stop - layer.start) / 2
      np.testing.assert_array_equal(equal[:, layer].sum(axis=1), count)
    # All entries take part at some time.
    self.assertTrue(equal.any(axis=0).all())

  def test_bytes_are_the_share_of_those_of_a_mean(self):
    params = {'k': np.zeros((40, 50), np.float32), 'b': np.zeros(200)}
    part = bytes_sent(pr.sparta(SGD, fraction=0.05), params)
    whole = bytes_sent(pr.k_avg(SGD, period=1), params)
    self.assertAlmostEqual(part, 0.05 * whole)

  def test_averages_groups_too(self):
    average = pr.stages.average_entries(1.0, mixing=pr.mixing.group_mean(4))
    got = final(pr.k_avg(SGD, period=2, average=average))
    want = final(
      pr.k_avg(SGD, period=2, average=pr.sync(pr.mixing.group_mean(4)))
    )
    laws.assert_close(got, want)

  @parameterized.parameters(0, 1.5)
  def test_fraction_is_in_range(self, fraction):
    with self.assertRaisesRegex(ValueError, r'fraction must be in \(0, 1\]'):
      pr.sparta(SGD, fraction=fraction)


class PowerSgdTest(parameterized.TestCase):
  @parameterized.parameters(2, 4)
  def test_of_full_rank_it_is_ssgd(self, rank):
    laws.assert_close(final(pr.power_sgd(SGD, rank=rank)), row('ssgd'))
    self.assertGreater(apart(row('power_sgd'), row('ssgd')), 1e-3)

  def test_what_is_left_out_waits(self):
    # x_0 - x_T = gamma (sum_t mean_i G_i - mean_i E_i), with momentum 0.
    x, state = run(pr.power_sgd(PLAIN, rank=1))
    registers = state.registers
    errors = registers['power_sgd.e']
    self.assertGreater(np.abs(errors['w']).max(), 1e-2)
    np.testing.assert_array_equal(errors['b'], 0)
    # With all errors sent at last it is where the mean gradients lead.
    path = reference.power_sgd(
      laws.PROBLEMS['smooth'],
      matrix=LAYERS[1],
      shape=(2, 2),
      start=first_factor(1),
      learning_rate=0.05,
    )
    laws.assert_close(x, path[-1])
    total = sum(
      laws.PROBLEMS['smooth'].gradient(i, path[t, i], t + 1) / N
      for t in range(T)
      for i in range(N)
    )
    moved = total[LAYERS[1]] - errors['w'].reshape(N, 4).mean(axis=0)
    laws.assert_close(
      path[0, 0] - path[-1, 0], 0.05 * np.append(moved, total[LAYERS[0]])
    )

  @parameterized.parameters(1, 2, 3)
  def test_tensors_are_matrices_of_low_rank(self, rank):
    # One step of size 1 from zero, on gradients that are the batch.
    rng = np.random.default_rng(rank)
    shapes = {'a': (5, 4), 'k': (2, 3, 7), 'b': (3,)}
    grads = {n: rng.normal(size=(N, *s)) for n, s in shapes.items()}

    def loss(params, model_state, batch, key):
      del key
      parts = [jnp.vdot(params[n], batch[n]) for n in shapes]
      return sum(parts), (model_state, {})

    with jax.enable_x64(True):
      mesh = pr.engine.ReplicaMesh(N, 2)
      algorithm = pr.power_sgd(optax.sgd(1.0), rank=rank)
      start = {n: np.zeros(s) for n, s in shapes.items()}
      state = pr.engine.create_train_state(mesh, algorithm, start)
      batch = {
        n: g.reshape((2, 1, N // 2, *shapes[n])) for n, g in grads.items()
      }
      train_steps = pr.engine.make_train_steps(mesh, algorithm, loss)
      first = mesh.gather(state.registers['power_sgd.q'])
      state, _ = train_steps(state, mesh.place_per_device(batch))
      x = mesh.gather(state.params)
    np.testing.assert_array_equal(x['b'], np.tile(x['b'][0], (N, 1)))
    np.testing.assert_allclose(-x['b'][0], grads['b'].mean(axis=0), rtol=1e-12)
    for name in ('a', 'k'):
      mean = grads[name].mean(axis=0).reshape((-1, shapes[name][-1]))
      p = reference.gram_schmidt(mean @ first[name][0])
      got = -x[name][0].reshape(mean.shape)
      np.testing.assert_allclose(got, p @ p.T @ mean, rtol=0, atol=1e-13)
      self.assertEqual(np.linalg.matrix_rank(got), rank)

  def test_bytes(self):
    # Two factors of rank 2 for each matrix, and the vector whole.
    params = {
      'k': np.zeros((3, 3, 16, 32), np.float32),
      'b': np.zeros(100, np.float32),
    }
    got = bytes_sent(pr.power_sgd(SGD, rank=2), params)
    floats = 2 * (144 + 32) + 100
    self.assertAlmostEqual(got, 2 * (N - 1) / N * 4 * floats)

  def test_a_gradient_of_zero_stays_zero(self):
    algorithm = pr.power_sgd(optax.sgd(1.0), rank=2)
    mesh = pr.engine.ReplicaMesh(2, 1)
    state = pr.engine.create_train_state(
      mesh, algorithm, np.ones((3, 3), np.float32)
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda x, s, b, k: (0 * x.sum(), (s, {}))
    )
    nothing = mesh.place_per_device(np.zeros((1, 3, 2, 1), np.float32))
    state, _ = train_steps(state, nothing)
    np.testing.assert_array_equal(mesh.gather(state.params), 1)

  @parameterized.parameters(0, 1.5, None)
  def test_rank_is_a_positive_integer(self, rank):
    with self.assertRaisesRegex(ValueError, 'rank must be an integer >= 1'):
      pr.power_sgd(SGD, rank=rank)


if __name__ == '__main__':
  absltest.main()
