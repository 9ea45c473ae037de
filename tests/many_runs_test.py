"""MANY RUNS: each equals the run of a trainer."""

from absl.testing import absltest, parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine import many_runs
from prsgd_jax.models import Transformer

N, T = 4, 6
ARRAYS = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
START = np.ones(3, np.float32)


def loss_fn(params, model_state, batch, key):
  """Drawn to the batch, with noise of the key."""
  noise = jax.random.normal(key, params.shape)
  loss = jnp.square(params - batch.mean(0)).sum() / 2 + noise @ params
  return loss, ({'steps': model_state['steps'] + 1}, {})


def draw(data, step, replica, key):
  """A batch of two rows, which depend on all three."""
  row = (5 * replica + step + jax.random.randint(key, (2,), 0, 8)) % 32
  return data[row]


DATA = pr.data.drawn(ARRAYS, draw)


def make(rate):
  """Random pairs, so that the stages draw, too; and a memory."""
  tx = optax.sgd(rate, momentum=0.5)
  return pr.chain(
    pr.step(tx), pr.sync(pr.graphs.random_matching()), pr.remember(x0='params')
  )


def run(settings, seeds, **kwargs):
  arguments = {
    'loss_fn': loss_fn, 'data': DATA, 'start': START, 'num_replicas': N,
    'num_steps': T, 'observe': lambda x: x,
    'model_state': {'steps': np.int32(0)}, **kwargs,
  }  # fmt: skip
  return many_runs.map_runs(make, settings, seeds, **arguments)


class MapRunsTest(parameterized.TestCase):
  def test_each_is_the_run_of_a_trainer(self):
    found = run((0.1, 0.3), (0, 7), every=T)
    self.assertEqual(found.shape, (2, 2, 1, N, 3))
    trainer = pr.trainer(make(0.3), loss_fn, num_replicas=N, num_devices=1)
    for seed, x in zip((0, 7), found[1]):
      state = trainer.init(START, {'steps': np.int32(0)}, seed=seed)
      state, _ = trainer.run(state, DATA, T)
      np.testing.assert_allclose(x[0], state.params, rtol=1e-5, atol=1e-6)

  def test_a_model_state_may_have_keys_and_a_seed_be_large(self):
    def noisy(params, model_state, batch, key):
      del batch, key
      noise = jax.random.normal(model_state['key'], params.shape)
      return noise @ params, ({**model_state, 'on': model_state['on']}, {})

    model_state = {'key': jax.random.key(1), 'on': np.array(True)}
    seed = 2**32 - 1
    found = run(
      [0.1], [seed], loss_fn=noisy, model_state=model_state, num_steps=1
    )
    trainer = pr.trainer(make(0.1), noisy, num_replicas=N, num_devices=1)
    state = trainer.init(START, model_state, seed=seed)
    state, _ = trainer.run(state, DATA, 1)
    np.testing.assert_allclose(found[0, 0, 0], state.params, rtol=1e-6)

  def test_attention_has_many_axes(self):
    # jaxlib 0.10.1 multiplied no arrays of nine axes on a CPU.
    net = Transformer(5, max_length=32, width=32, num_blocks=1, num_heads=4)
    text = np.random.default_rng(1).integers(0, 5, (8, 33))

    def start(key):
      return net.init(key, text[:1, :-1], train=False)['params']

    def of_text(params, model_state, batch, key):
      del key
      logits = net.apply({'params': params}, batch[:, :-1], train=True)
      cross_entropy = optax.softmax_cross_entropy_with_integer_labels
      return cross_entropy(logits, batch[:, 1:]).mean(), (model_state, {})

    def last(params):
      return params['Dense_2']['bias']

    data = pr.shared(text, batch_size=2, seed=0)
    found = run(
      (0.1, 0.3), (0, 7), loss_fn=of_text, data=data, start=start,
      model_state=(), every=T, observe=last,
    )  # fmt: skip
    self.assertEqual(found.shape, (2, 2, 1, N, 5))
    key = jax.random.fold_in(jax.random.key(7, impl='threefry2x32'), T)
    trainer = pr.trainer(make(0.3), of_text, num_replicas=N, num_devices=1)
    state, _ = trainer.run(trainer.init(start(key), seed=7), data, T)
    np.testing.assert_allclose(
      found[1, 1, 0], last(state.params), rtol=1e-5, atol=1e-6
    )

  def test_replicas_cannot_be_joined_in_the_loss(self):
    def joined(params, model_state, batch, key):
      loss, rest = loss_fn(params, model_state, batch, key)
      return lax.pmean(loss, pr.base.AXIS_NAME), rest

    message = 'loss_fn is a function of one replica'
    with self.assertRaisesRegex(ValueError, message):
      run((0.1,), (0,), loss_fn=joined)

  @parameterized.parameters(
    ({'every': 4}, 'num_steps must be a multiple of every=4, got 6'),
    ({'every': 0}, 'every must be an integer >= 1, got 0'),
    ({'data': ARRAYS}, 'map_runs expects data such as'),
    ({'observe': 3}, r'observe must be a function, observe\(params\), got 3'),
    ({'start': {}}, 'params must have an array at least, got {}'),
    ({'per_replica': True}, 'expected a leading axis of 4 replicas, got an'),
    ({'seeds': [-1]}, r'seeds must be an integer in 0 .. 2\*\*32 - 1, got -1'),
    ({'seeds': 3}, 'seeds must be a list of numbers, got 3'),
    ({'settings': 0.1}, 'settings must be a list of numbers, got 0.1'),
    ({'settings': []}, r'settings must have a number at least, got \[\]'),
    ({'seeds': []}, r'seeds must have a number at least, got \[\]'),
  )
  def test_slips_are_one_line(self, change, wanted):
    with self.assertRaisesRegex(ValueError, wanted):
      run(**{'settings': (0.1,), 'seeds': (0,), **change})


if __name__ == '__main__':
  absltest.main()
