"""Codecs around codecs: senders, frequencies, and their memory."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing import chunks

N = 4
# Four replicas, of which the first two entries are the largest by turns.
VALUES = np.array(
  [[4.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 8.0, 0.0], [3.0, 1.0, 0.0]]
)


def received(codec, values, *, mixing=None, num_steps=1, num_devices=2):
  """What arrives, [num_steps, N, ...], if the same is sent at each step."""
  algorithm = pr.chain(
    pr.remember(x='params'),
    pr.let(x='params'),
    pr.sync(pr.mixing.mean() if mixing is None else mixing, 'x', codec=codec),
  )
  with jax.enable_x64(True):
    mesh = pr.engine.ReplicaMesh(N, num_devices)
    state = pr.engine.create_train_state(
      mesh, algorithm, values, per_replica=True
    )
    train_steps = pr.engine.make_train_steps(
      mesh, algorithm, lambda *args: None
    )
    out = []
    for _ in range(num_steps):
      nothing = mesh.place_per_device(np.zeros((num_devices, 1, 2, 1)))
      state, _ = train_steps(state, nothing)
      out.append(mesh.gather(state.registers['x']))
    return np.stack(out)


class SendersTest(parameterized.TestCase):
  def test_an_entry_is_averaged_over_those_that_sent_it(self):
    one = pr.codecs.top_k(1 / 3)
    got = received(pr.codecs.among_senders(one), VALUES)[0]
    np.testing.assert_array_equal(got, [[3.0, 8.0, 0.0]] * N)
    # Over all replicas it is smaller by the share of the senders.
    got = received(one, VALUES)[0]
    np.testing.assert_array_equal(got, [[9 / 4, 2.0, 0.0]] * N)

  def test_if_all_send_all_it_is_the_mean(self):
    got = received(pr.codecs.among_senders(pr.codecs.uncompressed()), VALUES)[0]
    np.testing.assert_allclose(got, [VALUES.mean(axis=0)] * N, rtol=1e-15)

  def test_weights_of_a_graph_are_those_of_senders(self):
    # Replica 0 hears 3, itself and 1, a third each; all send their first entry.
    got = received(
      pr.codecs.among_senders(pr.codecs.top_k(1 / 3)),
      VALUES,
      mixing=pr.graphs.ring(),
    )[0]
    np.testing.assert_allclose(got[0], [3.0, 0.0, 0.0], rtol=1e-15)
    # Replica 1 hears 0, itself and 2, which sends its second.
    np.testing.assert_allclose(got[1], [3.0, 8.0, 0.0], rtol=1e-15)

  def test_a_nan_is_not_a_zero(self):
    got = received(
      pr.codecs.among_senders(pr.codecs.uncompressed()), VALUES * np.nan
    )
    self.assertTrue(np.isnan(got).all())

  def test_what_was_not_sent_waits(self):
    # Of replica 2: 8 is sent, 1 waits; then 2 + 0, 8 is sent, 2 waits.
    codec = pr.codecs.among_senders(
      pr.codecs.feedback(pr.codecs.top_k(1 / 3), decay=1.0)
    )
    got = received(codec, VALUES, num_steps=2)
    np.testing.assert_array_equal(got[1, 0], [3.0, 8.0, 0.0])

  @parameterized.parameters(pr.codecs.among_senders, pr.codecs.difference)
  def test_weights_of_replicas_are_refused(self, make):
    algorithm = pr.chain(
      pr.remember(weight=1.0),
      pr.let(x='params'),
      pr.sync(pr.mixing.mean(), 'x', codec=make(pr.codecs.top_k(0.5))),
      pr.let(params='x'),
    )
    with self.assertRaisesRegex(ValueError, 'does not support weights'):
      pr.engine.create_train_state(
        pr.engine.ReplicaMesh(N), algorithm, np.zeros(3)
      )


class FeedbackTest(parameterized.TestCase):
  @parameterized.parameters(1.0, 0.5, 0.0)
  def test_memory_is_what_was_not_sent_bit_for_bit(self, decay):
    codec = pr.codecs.feedback(
      pr.codecs.chunked_top_k(2, values=pr.codecs.bin_means()), decay
    )
    q = codec.compressor
    coded = jax.jit(lambda x: q.decode(q.encode(jax.random.key(0), x), x))
    rng = np.random.default_rng(0)
    memory = codec.start([jnp.zeros(9)])
    for _ in range(3):
      value = [rng.normal(size=9).astype(np.float32)]
      sent = codec.prepare(value, memory)
      np.testing.assert_array_equal(sent[0], value[0] + decay * memory[0])
      own = coded(sent)
      _, _, memory = codec.finish(sent, own, own, memory)
      np.testing.assert_array_equal(memory[0], sent[0] - own[0])


class FrequenciesTest(parameterized.TestCase):
  def test_of_all_frequencies_nothing_is_lost(self):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, 6, 10))
    got = received(
      pr.codecs.frequencies(pr.codecs.chunked_top_k(99), chunk=4), values
    )[0]
    want = np.broadcast_to(values.mean(axis=0), got.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)

  def test_the_strongest_frequency_of_each_chunk_is_sent(self):
    # A wave in each of two chunks of 8, and noise below it.
    rng = np.random.default_rng(0)
    waves = 5 * chunks.cosines(8)[[2, 5]].ravel()
    noisy = np.tile(waves, (N, 1)) + 0.3 * rng.normal(size=(N, 16))
    codec = pr.codecs.frequencies(pr.codecs.chunked_top_k(1, chunk=8), chunk=8)
    got = received(codec, noisy)[0, 0]
    there = chunks.cosines(8) @ got.reshape(2, 8).T
    self.assertEqual(np.flatnonzero(np.abs(there[:, 0]) > 1e-12).tolist(), [2])
    self.assertEqual(np.flatnonzero(np.abs(there[:, 1]) > 1e-12).tolist(), [5])

  def test_memory_is_in_frequencies(self):
    codec = pr.codecs.frequencies(
      pr.codecs.feedback(pr.codecs.chunked_top_k(1, chunk=4)), chunk=4
    )
    value = [jnp.arange(4.0)]
    there = codec.prepare(value, codec.start(value))
    np.testing.assert_allclose(
      there[0], chunks.cosines(4) @ np.arange(4.0), rtol=1e-6, atol=1e-6
    )
    nothing = [jnp.zeros(4)]
    _, _, memory = codec.finish(there, nothing, nothing, nothing)
    np.testing.assert_array_equal(memory[0], there[0])

  def test_no_more_is_sent_than_without(self):
    sizes = []
    for make in (lambda q: q, pr.codecs.frequencies, pr.codecs.among_senders):
      stage = pr.sync(pr.mixing.mean(), codec=make(pr.codecs.chunked_top_k(4)))
      shapes = pr.base.Replica(jax.ShapeDtypeStruct((20, 50), jnp.float32))
      (sent,) = stage.cost(shapes, N, np.arange(1))
      sizes.append(sent.bytes_sent)
    self.assertLen(set(sizes), 1)

  @parameterized.parameters(
    (lambda: pr.codecs.frequencies(0.1), 'expected a compressor.*got 0.1'),
    (
      lambda: pr.codecs.frequencies(pr.codecs.signs(), chunk=0),
      'chunk must be an integer',
    ),
    (lambda: pr.codecs.among_senders('top_k'), 'expected a compressor.*top_k'),
  )
  def test_arguments_are_checked(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
