"""Tests of `prsgd_jax.models.classification`."""

from absl.testing import absltest
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.models.classification import classifier


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x, *, train):
    del train
    return nn.Dense(3)(x)


class ClassifierTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.batch = {
      'image': jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
      'label': jnp.asarray([0, 1, 2, 0, 1, 2]),
    }
    self.key = jax.random.key(0)

  def test_loss_is_the_mean_cross_entropy(self):
    task = classifier(Linear())
    params, model_state = task.init(self.key, self.batch)
    loss, (_, metrics) = task.loss_fn(params, model_state, self.batch, self.key)
    kernel, bias = params['Dense_0']['kernel'], params['Dense_0']['bias']
    logits = np.asarray(self.batch['image'] @ kernel + bias, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = np.asarray(self.batch['label'])
    np.testing.assert_allclose(
      loss, -np.log(p[np.arange(6), label]).mean(), rtol=1e-5
    )
    accuracy = (logits.argmax(1) == label).mean()
    np.testing.assert_allclose(metrics['accuracy'], accuracy, rtol=1e-6)

  def test_an_empty_model_state_may_be_left_out(self):
    task = classifier(Linear())
    params, model_state = task.init(self.key, self.batch)
    self.assertEqual(model_state, {})
    found = {}
    for state in ((), {}, None):
      loss, (after, _) = task.loss_fn(params, state, self.batch, self.key)
      self.assertIs(type(after), type(state))  # as the engine expects
      values = task.eval_fn(params, state, self.batch)
      found[repr(state)] = float(loss), float(values['loss'].mean())
    self.assertLen(set(found.values()), 1)

  def test_a_missing_model_state_is_named(self):
    class Normalized(nn.Module):
      @nn.compact
      def __call__(self, x, *, train):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))

    task = classifier(Normalized())
    params, model_state = task.init(self.key, self.batch)
    self.assertIn('batch_stats', model_state)
    for state, message in (
      (
        (),
        r'^Normalized has a model_state.*trainer.init\(params, model_state\)$',
      ),
      ([np.ones(1)], '^model_state of Normalized must be a dict, .*got .*$'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        task.loss_fn(params, state, self.batch, self.key)
      with self.assertRaisesRegex(ValueError, message):
        task.eval_fn(params, state, self.batch)

  def test_weight_decay_is_coupled_l2_and_not_in_the_reported_loss(self):
    plain, decayed = (
      classifier(Linear()),
      classifier(Linear(), weight_decay=0.1),
    )
    params, model_state = plain.init(self.key, self.batch)
    args = (params, model_state, self.batch, self.key)
    grads, _ = jax.grad(plain.loss_fn, has_aux=True)(*args)
    penalized, (_, metrics) = jax.grad(decayed.loss_fn, has_aux=True)(*args)
    jax.tree.map(
      lambda g, x, p: np.testing.assert_allclose(g + 0.1 * x, p, rtol=1e-5),
      grads,
      params,
      penalized,
    )
    loss, _ = plain.loss_fn(*args)
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-6)

  def test_evaluation_gives_a_value_for_each_example(self):
    task = classifier(Linear())
    params, model_state = task.init(self.key, self.batch)
    values = task.eval_fn(params, model_state, self.batch)
    self.assertEqual(
      {k: v.shape for k, v in values.items()}, {'loss': (6,), 'accuracy': (6,)}
    )
    loss, _ = task.loss_fn(params, model_state, self.batch, self.key)
    np.testing.assert_allclose(values['loss'].mean(), loss, rtol=1e-6)

  def test_smoothed_labels_are_in_the_gradient_not_in_the_report(self):
    class Logits(nn.Module):  # without an argument `train`
      @nn.compact
      def __call__(self, x):
        return self.param('shift', nn.initializers.zeros, (3,)) + x

    x = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], np.float32)
    batch = {'image': x, 'label': np.array([1, 2])}
    task = classifier(Logits(), label_smoothing=0.3)
    params, state = task.init(jax.random.key(0), batch)
    loss, (_, metrics) = task.loss_fn(params, state, batch, jax.random.key(0))
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    plain = -log_p[[0, 1], [1, 2]]
    np.testing.assert_allclose(metrics['loss'], plain.mean(), rtol=1e-5)
    smoothed = 0.7 * plain - 0.3 * log_p.mean(1)
    np.testing.assert_allclose(loss, smoothed.mean(), rtol=1e-5)
    values = task.eval_fn(params, state, batch)
    np.testing.assert_allclose(values['loss'], plain, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
