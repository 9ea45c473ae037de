"""Common mistakes: each is one line that names it and what to type."""

import inspect

from absl.testing import absltest, parameterized
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import algorithms
from prsgd_jax.data import samplers
from prsgd_jax.engine import checkpoints

N, D, V = 4, 2, 2
MESH = pr.engine.ReplicaMesh(N, D)
SGD = optax.sgd(0.1, momentum=0.9)
ALGORITHM = pr.k_avg(SGD, period=2)
SLOWMO = pr.slowmo(SGD, learning_rate=0.1, period=2, slow_momentum=0.5)
SAMPLER = samplers.shared(16, N, 2, seed=0)
DATA = {'x': np.arange(16, dtype=np.float32)}
# One step, and the three steps of a scan.
ONE = np.zeros((D, 1, V, 2), np.float32)
THREE = np.zeros((D, 3, V, 2), np.float32)


def good_loss(params, model_state, batch, key):
  del key
  return jnp.square(params['w'] - batch.mean()).sum(), (model_state, {})


def good_values(params, model_state, batch):
  return {'x': batch['x'] * params['w'].sum()}


def create(algorithm=ALGORITHM, params=None, model_state=(), mesh=MESH):
  params = {'w': np.ones(3, np.float32)} if params is None else params
  return pr.engine.create_train_state(mesh, algorithm, params, model_state)


def step(loss_fn, batches=THREE, params=None, model_state=(), tx=SGD):
  algorithm = pr.k_avg(tx, period=2)
  steps = pr.engine.make_train_steps(MESH, algorithm, loss_fn)
  return steps(create(algorithm, params, model_state), batches)


def returning(result):
  """A step with a loss that returns `result(loss, model_state)`."""

  def loss_fn(params, model_state, batch, key):
    del batch, key
    return result(params['w'].sum(), model_state)

  return lambda: step(loss_fn)


def changing(change, start, batches=ONE):
  """A step with a loss that changes the model state."""

  def loss_fn(params, model_state, batch, key):
    del batch, key
    return params['w'].sum(), (change(model_state), {})

  return lambda: step(loss_fn, batches, model_state=start)


def resident(state=None, data=None, num_steps=1, **kwargs):
  batch_fn = pr.engine.make_batch_fn(
    MESH, SAMPLER, lambda key, batch: batch['x']
  )
  steps = pr.engine.make_resident_train_steps(
    MESH, ALGORITHM, good_loss, batch_fn
  )
  data = MESH.replicate(DATA) if data is None else data
  return steps(create() if state is None else state, data, num_steps, **kwargs)


def evaluate(state=None, examples=None, eval_fn=good_values, replicas=False):
  make = (
    pr.engine.make_evaluate_replicas if replicas else pr.engine.make_evaluate
  )
  if examples is None:
    examples = pr.engine.shard_examples(MESH, DATA, 4)
  state = create() if state is None else state
  return make(MESH, ALGORITHM, eval_fn)(state, examples)


def used_up(algorithm=ALGORITHM):
  state = create(algorithm)
  pr.engine.make_train_steps(MESH, algorithm, good_loss)(state, ONE)
  return state


RETURNS = {
  'loss_only': (
    returning(lambda loss, s: loss),
    r'must return \(loss, \(model_state, metrics\)\), .*got float32\[\]$',
  ),
  'loss_and_metrics': (
    returning(lambda loss, s: (loss, {'loss': loss})),
    r"must return \(loss, \(.*got \(float32\[\], \{'loss': float32\[\]\}\)$",
  ),
  'three_values': (
    returning(lambda loss, s: (loss, s, {})),
    r'must return \(loss, \(.*got \(float32\[\], \(\), \{\}\)$',
  ),
  'nothing': (returning(lambda loss, s: None), 'must return .* got None$'),
  'swapped_pair': (
    returning(lambda loss, s: ((s, {}), loss)),
    'must return .*loss',
  ),
  'vector_loss': (
    returning(lambda loss, s: (loss * jnp.ones(2), (s, {}))),
    r'loss .*must be a float scalar, got float32\[2\]; take its mean',
  ),
  'integer_loss': (
    returning(lambda loss, s: (jnp.int32(3), (s, {}))),
    r'loss .*must be a float scalar, got int32\[\]',
  ),
  'boolean_loss': (
    returning(lambda loss, s: (loss > 0, (s, {}))),
    r'loss .*must be a float scalar, got bool\[\]',
  ),
  'text_loss': (
    returning(lambda loss, s: ('1', (s, {}))),
    "loss .*must be a float scalar, got '1'",
  ),
  'metrics_array': (
    returning(lambda loss, s: (loss, (s, loss))),
    r'metrics as a dict .*got float32\[\]$',
  ),
  'metrics_none': (
    returning(lambda loss, s: (loss, (s, None))),
    'metrics as a dict .*got None$',
  ),
  'metric_without_a_name': (
    returning(lambda loss, s: (loss, (s, {1: loss, 'x': loss}))),
    r"metrics as a dict .*got {1: float32\[\], 'x': float32\[\]}$",
  ),
  'metric_of_text': (
    returning(lambda loss, s: (loss, (s, {'name': 'x'}))),
    "a metric .* must be an array, got 'x' for 'name'",
  ),
}

STATES = {
  'grows': (
    changing(
      lambda s: {'losses': (*s['losses'], jnp.zeros(2))},
      {'losses': (np.zeros(2, np.float32),)},
    ),
    r'model_state .*but losses.1: float32\[2\] is new; .*flax',
  ),
  'loses': (
    changing(lambda s: {}, {'mean': np.zeros(2, np.float32)}),
    r'model_state .*but mean: float32\[2\] is gone',
  ),
  'narrows': (
    changing(
      lambda s: {'mean': s['mean'].astype(jnp.bfloat16)},
      {'mean': np.zeros(2, np.float32)},
    ),
    r'model_state .*but mean: float32\[2\] became bfloat16\[2\]; cast it back',
  ),
  'gets_longer': (
    changing(
      lambda s: {'seen': jnp.append(s['seen'], 0)},
      {'seen': np.zeros(2, np.float32)},
    ),
    r'model_state .*but seen: float32\[2\] became float32\[3\]',
  ),
  'another_container': (
    changing(lambda s: None, ()),
    r'model_state .*but \(\) became None',
  ),
}
# The same in the scan, and where the block is mapped by vmap.
STATES |= {
  'grows_in_a_scan': (
    changing(
      lambda s: {**s, 'more': jnp.zeros(1)},
      {'one': np.zeros(1, np.float32)},
      THREE,
    ),
    STATES['grows'][1].replace('losses.1: float32\\[2', 'more: float32\\[1'),
  ),
}

ARGUMENTS = {
  'loss_fn_of_two': (
    lambda: step(lambda params, batch: params['w'].sum()),
    r'loss_fn is called as loss_fn\(params, model_state, batch, key\), but '
    r'takes \(params, batch\)',
  ),
  'batch_fn_of_three': (
    lambda: pr.engine.make_resident_train_steps(
      MESH, ALGORITHM, good_loss, lambda data, step, key: data
    ),
    r'batch_fn is called as batch_fn\(data, step, replica, key\)',
  ),
  'eval_fn_of_two': (
    lambda: evaluate(eval_fn=lambda params, batch: {}),
    r'eval_fn is called as eval_fn\(params, model_state, batch\)',
  ),
  'loss_fn_none': (lambda: step(None), 'loss_fn must be a function.*got None'),
  'train_steps_swapped': (
    lambda: pr.engine.make_train_steps(ALGORITHM, MESH, good_loss),
    r'make_train_steps expects \(mesh, algorithm, .*got \(a Replica',
  ),
  'resident_swapped': (
    lambda: pr.engine.make_resident_train_steps(
      MESH, good_loss, ALGORITHM, lambda d, s, r, k: d
    ),
    r'expects \(mesh, algorithm, .*the function good_loss',
  ),
  'create_swapped': (
    lambda: pr.engine.create_train_state(ALGORITHM, MESH, np.ones(3)),
    r'create_train_state expects \(mesh, algorithm',
  ),
  'consensus_swapped': (
    lambda: pr.engine.consensus(create(), ALGORITHM),
    r'consensus expects \(algorithm, state\), got \(a TrainState',
  ),
  'evaluate_swapped': (
    lambda: pr.engine.make_evaluate(ALGORITHM, MESH, good_values),
    r'make_evaluate expects \(mesh, algorithm',
  ),
  'batch_fn_swapped': (
    lambda: pr.engine.make_batch_fn(SAMPLER, MESH),
    r'make_batch_fn expects \(mesh, sampler\)',
  ),
  'state_and_data_swapped': (
    lambda: resident(MESH.replicate(DATA), create()),
    'train_steps expects the state that pr.engine.create_train_state returns',
  ),
  'data_not_replicated': (
    lambda: resident(data=DATA),
    r'data must have leaves \[D, .*got float32\[16\]; place it by '
    r'mesh.replicate\(data\)',
  ),
  'data_scalar': (lambda: resident(data=1.0), 'data must have .*got 1.0'),
  'raw_batch': (
    lambda: step(good_loss, np.zeros((N, 2), np.float32)),
    r'batches must have leaves \[D, steps, V, ...\] = \[2, steps, 2, ...\], '
    r'got float32\[4,2\]; make them by pr.engine.stack_batches',
  ),
  'batches_of_unequal_steps': (
    lambda: step(good_loss, (ONE, THREE)),
    r'batches must .*got \(float32\[2,1,2,2\], float32\[2,3,2,2\]\)',
  ),
  'no_batches': (lambda: step(good_loss, ()), r'batches must .*got \(\)'),
  'raw_examples': (
    lambda: evaluate(examples=DATA),
    'evaluate expects .*pr.engine.shard_examples.*got {',
  ),
  'raw_examples_of_replicas': (
    lambda: evaluate(examples=(DATA['x'], DATA['x']), replicas=True),
    'evaluate expects .*pr.engine.shard_examples.*got ',
  ),
  'no_examples': (
    lambda: evaluate(
      examples=({'x': np.zeros((D, 0, 2))}, np.zeros((D, 0, 2), np.float32))
    ),
    'evaluate expects .*pr.engine.shard_examples',
  ),
  'values_no_dict': (
    lambda: evaluate(eval_fn=lambda p, s, b: b['x']),
    r'eval_fn must return a dict .*got float32\[4\]',
  ),
  'values_scalar': (
    lambda: evaluate(eval_fn=lambda p, s, b: {'x': 1.0}),
    r'eval_fn must give x for each example, shape \(4,\), got shape \(\)',
  ),
}

PARAMETERS = {
  'text': (lambda: create(params={'name': 'mlp'}), "got 'mlp' in name"),
  'function': (lambda: create(params={'f': np.sum}), 'the function sum in f'),
  'module': (lambda: create(params=nn.Dense(3)), 'got a Dense in params'),
  'objects': (
    lambda: create(params={'w': np.array([None])}),
    r'got object\[1\] in w',
  ),
  'none': (lambda: create(params=()), r'must have an array.*got \(\)'),
  'text_in_model_state': (
    lambda: create(model_state={'name': 'x'}),
    "model_state must be a tree of arrays, got 'x' in name",
  ),
  'integers': (
    lambda: step(
      lambda p, s, b, k: (p['w'].sum() * 1.0, (s, {})),
      params={'w': np.ones(3, np.int32)},
    ),
    r'a parameter must be a float, got int32\[3\] in w; .*model_state',
  ),
  'mixed_dtypes': (
    lambda: step(
      lambda p, s, b, k: (p['a'].sum() + p['b'].sum(), (s, {})),
      params={'a': np.ones(2, np.float32), 'b': jnp.ones(2, jnp.bfloat16)},
      tx=optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9),
    ),
    r"'opt_state', but inner_state.0.trace.b: bfloat16\[2\] became float32\[2\]"
    '; the optimizer mixes dtypes',
  ),
}

OPTIMIZERS = {
  name: (
    lambda tx=tx: step(good_loss, tx=tx),
    r'requires more than \(grads, state, params\).*'
    + wanted
    + '.*use one that does not depend on the value of the loss',
  )
  for name, tx, wanted in (
    ('lbfgs', optax.lbfgs(), 'value'),
    ('polyak', optax.polyak_sgd(), 'value'),
    ('plateau', optax.contrib.reduce_on_plateau(), 'value'),
    (
      'inside_a_chain',
      optax.chain(optax.clip(1.0), optax.contrib.momo(0.1)),
      'value',
    ),
    (
      'opaque_sam',
      optax.contrib.sam(SGD, SGD, opaque_mode=True),
      'grad_fn',
    ),
  )
}

USED = 'this state was used up by the call that trained it; use the state'
WHICH_STATE = {
  'used_twice': (
    lambda: pr.engine.make_train_steps(MESH, ALGORITHM, good_loss)(
      used_up(), ONE
    ),
    USED,
  ),
  'used_and_evaluated': (lambda: evaluate(used_up()), USED),
  'used_and_averaged': (
    lambda: pr.engine.consensus(ALGORITHM, used_up()),
    USED,
  ),
  'used_and_gathered': (lambda: MESH.gather(used_up().params), USED),
  'used_and_saved': (
    lambda: checkpoints.save('unused', MESH, used_up(), {}),
    USED,
  ),
  'of_another_algorithm': (
    lambda: resident(create(pr.k_avg(optax.adam(0.1), period=2))),
    'the state is of another algorithm: its opt_state differs, .*trainer.init',
  ),
  'of_another_chain': (
    lambda: resident(create(SLOWMO)),
    'the state is of another algorithm: its ',
  ),
  'evaluated_by_another': (
    lambda: evaluate(create(SLOWMO)),
    'the state is of another algorithm: its ',
  ),
  'averaged_by_another': (
    lambda: pr.engine.consensus(SLOWMO, create()),
    'the state is of another algorithm: its ',
  ),
  'of_another_mesh': (
    lambda: resident(create(mesh=pr.engine.ReplicaMesh(N, 1))),
    r'was made for 4 replicas on 2 .*leading axes \(1, 4\) of another mesh',
  ),
  'evaluated_on_another_mesh': (
    lambda: evaluate(create(mesh=pr.engine.ReplicaMesh(8, D))),
    r'was made for 4 replicas on 2 .*leading axes \(2, 4\) of another mesh',
  ),
  'no_state': (
    lambda: pr.engine.consensus(ALGORITHM, create().params),
    'consensus expects the state that pr.engine.create_train_state returns, '
    'got {',
  ),
}

NUM_STEPS = {
  f'{name}': (
    lambda value=value: resident(num_steps=value),
    'num_steps must be an integer >= 0, got ',
  )
  for name, value in (
    ('negative', -5),
    ('fraction', 2.5),
    ('whole_float', 2.0),
    ('boolean', True),
    ('text', '2'),
    ('array', jnp.arange(3)),
  )
}
for value in (2**31, 2**63, 10**30):
  NUM_STEPS[f'{value}'] = (
    lambda value=value: resident(num_steps=value),
    rf'num_steps must be at most 2\*\*31 - 1 .*got {value}$',
  )
NUM_STEPS['traced'] = (
  lambda: jax.jit(lambda n: resident(num_steps=n))(3),
  'num_steps must be an integer >= 0, got ',
)

SLIPS = {
  f'{kind}_{name}': case
  for kind, table in {
    'returns': RETURNS,
    'model_state': STATES,
    'arguments': ARGUMENTS,
    'parameters': PARAMETERS,
    'optimizers': OPTIMIZERS,
    'state': WHICH_STATE,
    'num_steps': NUM_STEPS,
  }.items()
  for name, case in table.items()
}


class SlipsTest(parameterized.TestCase):
  @parameterized.named_parameters((n, *case) for n, case in SLIPS.items())
  def test_is_one_line(self, slip, pattern):
    with self.assertRaisesRegex(ValueError, pattern) as caught:
      slip()
    self.assertNotIn('\n', str(caught.exception))
    self.assertLess(len(str(caught.exception)), 400)

  def test_what_is_right_passes(self):
    # The twin of the table, with the values of two steps of 0.2 (w - mean).
    state, metrics = step(
      good_loss,
      np.full((D, 2, V, 2), 5.0, np.float32),
      tx=optax.sgd(0.1),
      model_state={'losses': (np.zeros(2, np.float32),)},
    )
    np.testing.assert_allclose(metrics['loss'][:, 0], 3 * 16, rtol=1e-6)
    params, _ = pr.engine.consensus(pr.k_avg(optax.sgd(0.1), period=2), state)
    np.testing.assert_allclose(params['w'], 5 - 4 * 0.8**2, rtol=1e-6)
    self.assertEqual(evaluate()['x'], 3 * 7.5)
    np.testing.assert_array_equal(evaluate(replicas=True)['x'], [22.5] * N)

  def test_number_of_steps_may_be_a_keyword_or_a_numpy_integer(self):
    steps = pr.engine.make_resident_train_steps(
      MESH, ALGORITHM, good_loss, lambda data, step, replica, key: data['x']
    )
    state, data = create(), MESH.replicate(DATA)
    state, _ = steps(state, data, num_steps=2)
    state, metrics = steps(state, data=data, num_steps=np.int64(2))
    self.assertEqual(state.step[0], 4)
    self.assertEqual(metrics['loss'].shape, (D, 2, V))

  def test_a_failed_dispatch_leaves_the_state(self):
    state = create()
    for bad in (np.zeros((N, 2), np.float32), (ONE, THREE)):
      with self.assertRaises(ValueError):
        pr.engine.make_train_steps(MESH, ALGORITHM, good_loss)(state, bad)
    state, _ = pr.engine.make_train_steps(MESH, ALGORITHM, good_loss)(
      state, ONE
    )
    self.assertEqual(state.step[0], 1)

  def test_python_numbers_may_be_losses_metrics_and_states(self):
    def loss_fn(params, model_state, batch, key):
      return params['w'].sum(), ({'seen': 3}, {'constant': 2.0})

    state, metrics = step(loss_fn, model_state={'seen': 0})
    np.testing.assert_array_equal(metrics['constant'], np.full((D, 3, V), 2))
    self.assertEqual(MESH.gather(state.model_state)['seen'].tolist(), [3] * N)


# What factories need besides an optimizer.
REQUIRED = {
  'alpha': 0.1,
  'block_momentum': 0.5,
  'compressor': pr.codecs.top_k(0.1),
  'consensus_step_size': 0.5,
  'contraction': 0.5,
  'delay': 1,
  'epoch_lengths': [2, 3],
  'group_sizes': [2, 4],
  'learning_rate': 0.1,
  'local_steps': [1, 2],
  'mixing': pr.graphs.ring(),
  'momentum': 0.9,
  'periods': [2, 4],
  'probability': 0.5,
  'slow_momentum': 0.5,
  'speeds': [1, 2],
  'ticks_per_step': [1, 2],
  'weights': [1, 2],
}


class OptimizerTest(parameterized.TestCase):
  @parameterized.parameters(*algorithms.__all__)
  def test_every_factory_says_what_to_type(self, name):
    factory = getattr(algorithms, name)
    options = {
      key: REQUIRED.get(key, 4)
      for key, p in inspect.signature(factory).parameters.items()
      if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }
    for slip, pattern in (
      (0.1, r'got 0.1; write optax.sgd\(0.1\)$'),
      (lambda g: g, r'got the function <lambda>$'),
      ([SGD, SGD], r'combine them with optax.chain\(...\)$'),
      (optax.adam, r'got the function adam; call it, as in optax.adam\('),
      (
        optax.MultiSteps(SGD, 2),
        r'got a MultiSteps; append .gradient_transformation\(\)$',
      ),
      ('sgd', "got 'sgd'$"),
    ):
      with self.assertRaisesRegex(
        ValueError, 'optax transformation.*' + pattern
      ):
        factory(slip, **options)
    factory(optax.MultiSteps(SGD, 2).gradient_transformation(), **options)


class ReprTest(absltest.TestCase):
  def test_shows_the_registers(self):
    stage = pr.chain(pr.gradient(), pr.sync(pr.mixing.mean(), 'grads'))
    self.assertEqual(
      repr(stage),
      "ReplicaTransformation(reads=['model_state', 'params'], "
      "writes=['grads', 'metrics', 'model_state', 'weight'], declares=[], "
      'messages=1)',
    )


if __name__ == '__main__':
  absltest.main()
