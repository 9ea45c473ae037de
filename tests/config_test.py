"""Tests of `experiments/running/flags/config.py`."""

from absl.testing import absltest, parameterized
import jax
import numpy as np
import optax

from experiments.running.execution import experiment
from experiments.running.flags import (
  config,
  learning_rates,
  optimizers,
  run_config,
  tasks,
)
import prsgd_jax as pr

DEFAULTS = config.RunConfig(
  algorithm='k_avg',
  options={'period': 4},
  dataset='digits',
  model='mlp',
  num_replicas=8,
  batch_size=16,
  partition='shared',
  dirichlet_alpha=None,
  augment=False,
  learning_rate=0.1,
  learning_rate_drops=(),
  optimizer='sgd',
  momentum=0.9,
  nesterov=False,
  weight_decay=0.0,
  dtype='float32',
  seed=0,
  num_epochs=2.0,
  num_steps=None,
)


def dataset(value=0):
  split = {'image': np.full((4, 2, 2, 1), value, np.uint8)}
  return pr.data.Dataset('digits', split, split, 10)


def changed(**kwargs):
  return config.check(config.dataclasses.replace(DEFAULTS, **kwargs))


class ConfigTest(parameterized.TestCase):
  def test_length_is_of_epochs_unless_steps_are_given(self):
    # 1280 examples in steps of 8 x 16 = 128.
    self.assertEqual(run_config.total_steps(DEFAULTS, 1280), 20)
    self.assertEqual(run_config.total_steps(DEFAULTS, 1281), 21)
    self.assertEqual(run_config.total_steps(changed(num_steps=7), 1280), 7)

  def test_learning_rate_drops_when_the_epochs_are_done(self):
    schedule = learning_rates.build(
      changed(learning_rate_drops=(1.0, 1.5)), 1280
    )
    rates = [float(schedule(step)) for step in (0, 9, 10, 14, 15, 19)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])

  def test_learning_rate_rises_in_the_warmup(self):
    schedule = learning_rates.build(
      changed(warmup_epochs=0.5, learning_rate_drops=(1.0,)), 1280
    )
    rates = [float(schedule(step)) for step in (0, 1, 4, 5, 9, 10)]
    np.testing.assert_allclose(rates, [0.02, 0.04, 0.1, 0.1, 0.1, 0.01])

  def test_learning_rate_falls_to_its_end(self):
    # Two epochs are 20 steps, a fifth of one 2 of warm-up; 18 are left.
    fields = {'warmup_epochs': 0.2, 'lr_end': 0.02}
    steps = np.array([0, 1, 2, 11, 19, 20])
    fallen = np.maximum(steps - 2, 0) / 18
    for name, shape in (
      ('linear', 1 - fallen),
      ('cosine', (1 + np.cos(np.pi * fallen)) / 2),
    ):
      schedule = learning_rates.build(changed(lr_schedule=name, **fields), 1280)
      rates = [float(schedule(step)) for step in steps]
      rise = np.minimum((steps + 1) / 2, 1)
      wanted = (0.02 + 0.08 * shape) * rise
      np.testing.assert_allclose(rates, wanted, rtol=1e-5)
    constant = learning_rates.build(changed(lr_schedule='constant'), 1280)
    np.testing.assert_allclose(float(constant(19)), 0.1)
    with self.assertRaisesRegex(ValueError, 'has no step left'):
      learning_rates.build(
        changed(lr_schedule='linear', warmup_epochs=2.0), 1280
      )

  def test_length_is_described_where_the_learning_rate_has_it(self):
    for name, counts in (('cosine', True), ('constant', False)):
      short = changed(lr_schedule=name)
      longer = changed(lr_schedule=name, num_epochs=3.0)
      same = short.description(dataset()) == longer.description(dataset())
      self.assertEqual(same, not counts)

  def test_label_and_description_tell_runs_apart(self):
    self.assertEqual(DEFAULTS.label(), 'k_avg period=4')
    other = changed(options={'period': 8})
    self.assertNotEqual(
      DEFAULTS.description(dataset()), other.description(dataset())
    )

  def test_data_are_described_by_their_contents(self):
    same, other = dataset(0), dataset(1)
    self.assertEqual(
      DEFAULTS.description(same), DEFAULTS.description(dataset())
    )
    self.assertNotEqual(DEFAULTS.description(same), DEFAULTS.description(other))

  def test_drops_of_one_step_are_both_taken(self):
    schedule = learning_rates.build(
      changed(learning_rate_drops=(0.01, 0.02)), 1280
    )
    np.testing.assert_allclose(float(schedule(5)), 0.001)

  @parameterized.parameters(
    ({'learning_rate_drops': (2.0, 1.0)}, 'increasing'),
    ({'learning_rate_drops': (0.0,)}, 'increasing'),
    ({'learning_rate_drops': (float('nan'),)}, 'increasing'),
    ({'learning_rate_drops': (float('inf'),)}, 'increasing'),
    ({'learning_rate_drops': (2.0,), 'warmup_epochs': 2.0}, 'before the first'),
    ({'warmup_epochs': -1.0}, 'warmup_epochs must be >= 0'),
    ({'learning_rate': float('inf')}, 'learning_rate must be > 0'),
    ({'weight_decay': -1.0}, 'weight_decay must be >= 0'),
    ({'weight_decay': float('nan')}, 'weight_decay must be >= 0'),
    ({'lr_end': 0.1}, '--lr_end does nothing for a constant learning rate'),
    ({'lr_end': -1.0, 'lr_schedule': 'linear'}, 'lr_end must be >= 0, got -1'),
    ({'lr_end': float('nan'), 'lr_schedule': 'linear'}, 'lr_end must be >= 0'),
    ({'lr_schedule': 'cosine', 'learning_rate_drops': (1.0,)},
     '--lr_schedule=cosine and --learning_rate_drops exclude each other'),
    ({'clip_norm': 0.0}, 'clip_norm must be > 0, got 0'),
    ({'clip_norm': float('nan')}, 'clip_norm must be > 0, got nan'),
    ({'adam_b1': 0.5}, '--adam_b1 does nothing for --optimizer=sgd; leave'),
    ({'adam_b2': 1.0, 'optimizer': 'adam', 'momentum': 0.0},
     r'--adam_b2 must be in \[0, 1\), got 1.0'),
    ({'adam_eps': 0.0, 'optimizer': 'adam', 'momentum': 0.0},
     '--adam_eps must be > 0, got 0.0'),
    ({'label_smoothing': 1.0}, r'--label_smoothing must be in \[0, 1\)'),
    ({'model': 'mpl'}, 'unknown --model=mpl; did you mean mlp?'),
    ({'dataset': 'digit'}, "got 'digit'; did you mean digits?"),
    ({'model_options': {'widths': '3'}}, '--model=mlp has no widths; it has '
     'hidden'),
    ({'model_options': {'hidden': '3+0'}},
     'hidden must be >= 1 and below 2..31, got 3.0'),
    ({'model_options': {'hidden': '3+x'}}, "hidden must be int, got 'x'"),
    ({'optimizer': 'adam'}, '--momentum does nothing for --optimizer=adam'),
    ({'optimizer': 'adamw', 'momentum': 0.0, 'nesterov': True},
     '--nesterov does nothing for --optimizer=adamw'),
    ({'optimizer': 'adam', 'momentum': 0.0, 'algorithm': 'eamsgd',
      'options': {'period': 4, 'alpha': 0.1}},
     'eamsgd has its own momentum, which requires --optimizer=sgd'),
    ({'optimizer': 'adma', 'momentum': 0.0}, 'unknown --optimizer=adma; use'),
    ({'dataset': 'text'}, '--model=mlp does not read --dataset=text; use '
     '--model=transformer'),
    ({'model': 'transformer'}, '--model=transformer does not read '
     '--dataset=digits; use --model=mlp or lenet or resnet20'),
    ({'dataset': 'text', 'model': 'transformer', 'augment': True},
     '--augment requires images; leave it out'),
    ({'dataset': 'text', 'model': 'transformer', 'partition': 'dirichlet',
      'dirichlet_alpha': 0.1}, 'requires labels, but --dataset=text has none'),
    ({'optimizer': 'muon'}, '--momentum does nothing for --optimizer=muon'),
    ({'options': {'period': 4, 'when': 'every:4'}},
     '--when replaces --period; give one of them'),
    ({'options': {}}, 'k_avg needs --period; for example --period=4'),
    ({'algorithm': 'ssgd', 'options': {'when': 'every:4'}},
     '--when does nothing for --algorithm=ssgd; leave it out'),
    ({'algorithm': 'dynamic_averaging',
      'options': {'when': 'every:4', 'check_period': 4, 'threshold': 1.0}},
     '--when replaces --check_period; give one of them'),
    ({'algorithm': 'streaming_diloco',
      'options': {'when': 'every:4', 'fragments': 1, 'delay': 0, 'alpha': 0}},
     '--when does nothing for --algorithm=streaming_diloco; leave it out'),
    ({'algorithm': 'ssgd', 'options': {'local': 'sgp'}},
     '--local does nothing for --algorithm=ssgd; leave it out'),
    ({'algorithm': 'pr_sgd', 'options': {'local': 'sgp', 'period': 4}},
     '--local does nothing for --algorithm=pr_sgd; leave it out'),
    ({'algorithm': 'scaffold',
      'options': {'period': 4, 'average_mixing': 'ring'}},
     '--average_mixing does nothing for --algorithm=scaffold; leave it out'),
    ({'algorithm': 'd_psgd', 'options': {'average_mixing': 'ring'}},
     '--average_mixing does nothing for --algorithm=d_psgd, whose averages'),
    ({'algorithm': 'd_psgd', 'options': {'average_codec': 'signs'}},
     '--average_codec does nothing for --algorithm=d_psgd, whose averages'),
    ({'algorithm': 'diloco', 'options': {
      'period': 4, 'average_codec': 'signs', 'average_mixing': 'ring'}},
     '--average_codec and --average_mixing exclude each other: .*choco_sgd'),
    ({'seed': -1}, 'seed must be an integer in'),
    ({'seed': 2**32}, 'seed must be an integer in'),
  )  # fmt: skip
  def test_refuses_what_has_no_sense(self, fields, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      changed(**fields)

  def test_length_is_described_only_where_the_algorithm_has_it(self):
    longer = changed(num_epochs=3.0)
    self.assertEqual(
      DEFAULTS.description(dataset()), longer.description(dataset())
    )
    one_shot = changed(algorithm='one_shot_averaging', options={})
    longer = changed(algorithm='one_shot_averaging', options={}, num_epochs=3.0)
    self.assertNotEqual(
      one_shot.description(dataset()), longer.description(dataset())
    )

  def test_length_is_described_where_the_schedule_has_it(self):
    for when, counts in (('qsr:0.1:4', True), ('doubling:4', False)):
      short = changed(options={'when': when})
      longer = changed(options={'when': when}, num_epochs=3.0)
      same = short.description(dataset()) == longer.description(dataset())
      self.assertEqual(same, not counts)

  def test_label_has_the_schedule(self):
    label = changed(options={'when': 'at:3,7'}).label()
    self.assertEqual(label, 'k_avg when=at:3+7')

  def test_buffers_are_those_of_momentum_or_of_adam(self):
    options = {'period': 4, 'buffers': 'reset'}
    with self.assertRaisesRegex(ValueError, 'does nothing without --momentum'):
      changed(options=options, momentum=0.0)
    changed(options=options, momentum=0.0, optimizer='adam')


class OptimizerTest(parameterized.TestCase):
  def step(self, run_config, x, g):
    """Where the first step goes from x."""
    plan = experiment.build_plan(run_config, 1280)
    tx = optimizers.build(run_config, plan.schedule)
    updates, _ = tx.update(g, tx.init(x), x)
    return optax.apply_updates(x, updates)

  def test_adam_and_adamw_step_as_their_papers_do(self):
    x, g = np.float32([2.0, -1.0]), np.float32([0.3, -5.0])
    fields = {'momentum': 0.0, 'weight_decay': 0.5, 'learning_rate': 0.01}
    # The first step: m / (sqrt(v) + eps) is the sign of the gradient.
    adam = self.step(changed(optimizer='adam', **fields), x, g)
    np.testing.assert_allclose(adam, x - 0.01 * np.sign(g), rtol=1e-5)
    adamw = self.step(changed(optimizer='adamw', **fields), x, g)
    decayed = x - 0.01 * (np.sign(g) + 0.5 * x)
    np.testing.assert_allclose(adamw, decayed, rtol=1e-5)
    sgd = self.step(changed(**fields), x, g)
    np.testing.assert_allclose(sgd, x - 0.01 * g, rtol=1e-5)

  def test_moments_of_adam_are_those_of_the_flags(self):
    g = np.float32([0.3, -5.0])
    fields = {
      'optimizer': 'adam', 'momentum': 0.0, 'learning_rate': 0.01,
      'adam_b1': 0.5, 'adam_b2': 0.75, 'adam_eps': 2.0,
    }  # fmt: skip
    tx = optimizers.build(changed(**fields), lambda step: 0.01)
    x = np.zeros(2, np.float32)
    state = tx.init(x)
    first, state = tx.update(g, state, x)
    np.testing.assert_allclose(first, -0.01 * g / (abs(g) + 2), rtol=1e-5)
    second, _ = tx.update(0 * g, state, x)
    # m = 1/4 g / (1 - 1/4), v = 3/16 g^2 / (1 - 9/16)
    m, v = g / 3, 3 / 7 * np.square(g)
    np.testing.assert_allclose(second, -0.01 * m / (np.sqrt(v) + 2), rtol=1e-5)

  def test_gradients_are_clipped_before_the_optimizer(self):
    x, g = np.zeros(2, np.float32), np.float32([3.0, -4.0])
    clipped = self.step(changed(clip_norm=2.5), x, g)
    np.testing.assert_allclose(clipped, -0.1 * g / 2, rtol=1e-6)
    small = self.step(changed(clip_norm=10.0), x, g)
    np.testing.assert_allclose(small, -0.1 * g, rtol=1e-6)

  def test_sizes_of_models_are_those_of_the_options(self):
    image = np.ones((1, 2, 2, 1), np.float32)
    task = tasks.build(
      changed(model_options={'hidden': '7+5'}), 10,
      {'image': image, 'label': np.zeros(1, np.int32)},
    )  # fmt: skip
    params, _ = task.init(jax.random.key(0), {'image': image})
    self.assertEqual(
      [layer['kernel'].shape for layer in params.values()],
      [(4, 7), (7, 5), (5, 10)],
    )

  def test_muon_orthogonalizes_matrices_and_adams_the_others(self):
    rng = np.random.default_rng(0)
    x = {'matrix': rng.normal(size=(4, 3)), 'vector': rng.normal(size=4)}
    x = jax.tree.map(np.float32, x)
    g = jax.tree.map(np.square, x)
    fields = {'momentum': 0.0, 'weight_decay': 0.5, 'learning_rate': 0.01}
    new = self.step(changed(optimizer='muon', **fields), x, g)
    moved = jax.tree.map(lambda n, o: (o - n) / 0.01 - 0.5 * o, new, x)
    # Five Newton-Schulz iterations bring singular values near 1, no further.
    sizes = np.linalg.svd(moved['matrix'], compute_uv=False)
    np.testing.assert_allclose(sizes, 1, atol=0.35)
    # That of AdamW with Nesterov momentum: the first m is counted twice.
    nesterov = 1 + 0.9 * (1 - 0.9) / (1 - 0.9**2)
    np.testing.assert_allclose(moved['vector'], nesterov, rtol=1e-3)

  @parameterized.parameters(
    ('sgd', 0.5), ('adam', 0.5), ('adamw', 0.0), ('muon', 0.0)
  )
  def test_decay_is_in_the_loss_unless_it_is_decoupled(self, optimizer, decay):
    run_config = changed(optimizer=optimizer, momentum=0.0, weight_decay=0.5)
    batch = {
      'image': np.ones((2, 2, 2, 1), np.float32),
      'label': np.zeros(2, np.int32),
    }
    task = tasks.build(run_config, 10, batch)
    params, model_state = task.init(jax.random.key(0), batch)
    loss, (_, metrics) = task.loss_fn(
      params, model_state, batch, jax.random.key(0)
    )
    squares = optax.tree.norm(params, squared=True)
    np.testing.assert_allclose(
      loss - metrics['loss'], 0.5 * decay * squares, rtol=1e-4, atol=1e-6
    )


if __name__ == '__main__':
  absltest.main()
