"""A newcomer's path after the README's quick start: the user's own parts.

The quick start itself is run in `readme_test.py`. The steps are few, because
each test compiles a program of its own.
"""

import itertools
import tempfile

from absl.testing import absltest
from flax import nnx
import flax.linen as nn
import jax
import numpy as np
import optax

import prsgd_jax as pr

DIGITS = pr.load_dataset('digits')
ALGORITHM = pr.pr_sgd(optax.sgd(0.05, momentum=0.9), period=4)


def loss_fn(params, model_state, batch, key):
  """Softmax regression."""
  del key
  losses = cross_entropy(logits_of(params, batch), batch['label'])
  return losses.mean(), (model_state, {})


def logits_of(params, batch):
  x = batch['image'].reshape((len(batch['image']), -1)) / 16
  return x @ params['w'] + params['b']


def cross_entropy(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def eval_fn(params, model_state, batch):
  del model_state
  right = logits_of(params, batch).argmax(-1) == batch['label']
  return {'accuracy': 1.0 * right}


PARAMS = {
  'w': np.zeros((64, 10), np.float32),
  'b': np.zeros(10, np.float32),
}


def batches(batch_size, seed=0):
  """A loader's batches of all replicas, without end."""
  rng = np.random.default_rng(seed)
  n = len(DIGITS.train['label'])
  while True:
    rows = rng.integers(n, size=batch_size)
    yield {name: x[rows] for name, x in DIGITS.train.items()}


class NewcomerTest(absltest.TestCase):
  def test_a_linen_model_with_dropout(self):
    class Net(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        x = nn.relu(nn.Dense(16)(x.reshape((len(x), -1)) / 16))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))

    def loss_fn(params, model_state, batch, key):
      logits = Net().apply(
        {'params': params}, batch['image'], train=True, rngs={'dropout': key}
      )
      losses = cross_entropy(logits, batch['label'])
      return losses.mean(), (model_state, {'first': logits[0, 0]})

    image = DIGITS.train['image'][:1]
    params = Net().init(jax.random.key(0), image, train=False)['params']
    trainer = pr.trainer(ALGORITHM, loss_fn, num_replicas=4)
    same = jax.tree.map(lambda x: np.repeat(x[:4], 16, 0), DIGITS.train)
    data = pr.stream(
      itertools.repeat(jax.tree.map(lambda x: x[:16], same)), global_batch=True
    )
    state, metrics = trainer.run(trainer.init(params), data, num_steps=20)
    # The replicas have one point and one batch, and masks of their own.
    self.assertLen(np.unique(metrics['first'][0]), 4)
    self.assertLess(metrics['loss'][-1].mean(), metrics['loss'][0].mean())
    params, _ = trainer.average(state)
    logits = Net().apply({'params': params}, same['image'], train=False)
    self.assertEqual(logits.shape, (64, 10))

  def test_an_nnx_model_with_dropout(self):
    class Net(nnx.Module):
      def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(16, 10, rngs=rngs)

      def __call__(self, x):
        x = nnx.relu(self.hidden(x.reshape((len(x), -1)) / 16))
        return self.out(self.dropout(x))

    graph, params, model_state = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, model_state, batch, key):
      del key  # the model's own keys are renewed for each replica and step
      model = nnx.merge(graph, params, model_state, copy=True)
      logits = model(batch['image'])
      losses = cross_entropy(logits, batch['label'])
      model_state = nnx.state(model, nnx.Not(nnx.Param))
      return losses.mean(), (model_state, {'first': logits[0, 0]})

    trainer = pr.trainer(ALGORITHM, loss_fn, num_replicas=4)
    same = jax.tree.map(lambda x: np.repeat(x[:1], 16, 0), DIGITS.train)
    data = pr.stream(itertools.repeat(same), global_batch=True)
    state = trainer.init(params, model_state)
    state, metrics = trainer.run(state, data, num_steps=20)
    self.assertLen(np.unique(metrics['first'][0]), 4)
    self.assertLess(metrics['loss'][-1].mean(), metrics['loss'][0].mean())
    model = nnx.merge(graph, *trainer.average(state), copy=True)
    model = nnx.view(model, deterministic=True)
    self.assertEqual(model(same['image'])[0].argmax(), same['label'][0])

  def test_an_iterator(self):
    trainer = pr.trainer(ALGORITHM, loss_fn, num_replicas=8, eval_fn=eval_fn)
    state, loader = trainer.init(PARAMS), batches(8 * 16)
    for _ in range(2):
      data = pr.stream(loader, global_batch=True)
      state, metrics = trainer.run(state, data, num_steps=50)
    self.assertEqual((state.step, metrics['loss'].shape), (100, (50, 8)))
    found = trainer.evaluate(state, DIGITS.test)
    self.assertGreater(found['accuracy'], 0.9)

  def test_a_checkpoint(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    data = pr.sharded(DIGITS.train, batch_size=8)
    trainer = pr.trainer(ALGORITHM, loss_fn, num_replicas=4)
    state, _ = trainer.run(trainer.init(PARAMS), data, num_steps=6)
    trainer.save(directory, state)
    whole, _ = trainer.run(state, data, num_steps=6)
    state = trainer.restore(directory, trainer.init(PARAMS))
    self.assertEqual(state.step, 6)
    state, _ = trainer.run(state, data, num_steps=6)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


if __name__ == '__main__':
  absltest.main()
