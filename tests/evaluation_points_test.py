"""Optimizers whose result is not the parameters: the point to evaluate."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import prsgd_jax as pr

T = 5
GRADIENTS = np.random.default_rng(0).normal(size=(T, 4, 3)).astype(np.float32)
START = np.array([1.0, -2.0, 0.5], np.float32)


def loss(params, model_state, batch, key):
  del key
  x = params.fast if isinstance(params, optax.LookaheadParams) else params
  return (x**2).sum() / 2 + x @ batch, (model_state, {})


def trained(algorithm, start=START, n=4, num_devices=2, num_steps=T):
  mesh = pr.engine.ReplicaMesh(n, num_devices)
  state = pr.engine.create_train_state(mesh, algorithm, start)
  steps = pr.engine.make_train_steps(mesh, algorithm, loss)
  for g in GRADIENTS[:num_steps, :n]:
    batch = g.reshape((num_devices, 1, n // num_devices, 3))
    state, _ = steps(state, mesh.place_per_device(batch))
  return mesh, state


def plain(tx, replica, start=START, num_steps=T):
  """optax's own loop: the parameters and the state at the end."""
  move = jax.jit(tx.update)
  x = jax.tree.map(jnp.asarray, start)
  state = tx.init(x)
  for g in GRADIENTS[:num_steps, replica]:
    at = x.fast if isinstance(x, optax.LookaheadParams) else x
    updates, state = move(at + g, state, x)
    x = optax.apply_updates(x, updates)
  return x, state


def free():
  return contrib.schedule_free_sgd(0.1, warmup_steps=2)


def parameter(params, model_state, batch):
  del model_state
  x = params.fast if isinstance(params, optax.LookaheadParams) else params
  return {f'x{i}': x[i] + 0 * batch for i in range(3)}


class ScheduleFreeTest(parameterized.TestCase):
  @parameterized.parameters(
    free,
    lambda: contrib.schedule_free_adamw(0.1),
    lambda: optax.chain(optax.clip(1.0), free()),
    lambda: optax.inject_hyperparams(contrib.schedule_free_sgd)(0.1),
  )
  def test_of_one_replica_equals_optaxs_loop(self, make):
    algorithm = pr.ssgd(make())
    _, state = trained(algorithm, n=1, num_devices=1)
    x, opt_state = plain(make(), 0)
    (inner,) = [
      node
      for node in jax.tree.leaves(opt_state, is_leaf=is_free)
      if is_free(node)
    ]
    want = contrib.schedule_free_eval_params(inner, x)
    got, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    self.assertGreater(np.abs(got - x).max(), 1e-3)  # another point

  @parameterized.parameters(1, 2, 4)
  def test_of_several_is_the_mean_of_their_points(self, num_devices):
    algorithm = pr.chain(pr.step(free()))
    mesh, state = trained(algorithm, num_devices=num_devices)
    points = []
    for i in range(4):
      x, opt_state = plain(free(), i)
      points.append(contrib.schedule_free_eval_params(opt_state, x))
    want = np.mean(points, axis=0)
    got, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    examples = pr.engine.shard_examples(mesh, np.zeros(4, np.float32), 1)
    found = pr.engine.make_evaluate(mesh, algorithm, parameter)(state, examples)
    np.testing.assert_allclose([found[f'x{i}'] for i in range(3)], want, 1e-5)
    each = pr.engine.make_evaluate_replicas(mesh, algorithm, parameter)
    found = each(state, examples)
    np.testing.assert_allclose(found['x0'], np.stack(points)[:, 0], rtol=1e-5)

  @parameterized.parameters((['params'],), (['params', 'opt_state'],))
  def test_an_average_keeps_the_mean_of_the_points(self, what):
    algorithm = pr.chain(pr.step(free()))
    averaged = pr.chain(
      pr.step(free()),
      pr.at(lambda t: t == T - 1, pr.sync(pr.mixing.mean(), what)),
    )
    got, _ = pr.engine.consensus(averaged, trained(averaged)[1])
    want, _ = pr.engine.consensus(algorithm, trained(algorithm)[1])
    np.testing.assert_allclose(got, want, rtol=1e-4)

  def test_a_part_of_the_parameters_is_refused(self):
    tx = optax.masked(free(), {'a': True, 'b': False})
    start = {'a': START, 'b': START}
    with self.assertRaisesRegex(
      ValueError, r'part of the.*optimizers\.evaluated_at'
    ):
      pr.engine.create_train_state(pr.engine.ReplicaMesh(2), pr.ssgd(tx), start)

  def test_two_of_them_are_refused(self):
    tx = optax.chain(free(), free())
    with self.assertRaisesRegex(ValueError, r'2 states such as ScheduleFree'):
      pr.engine.create_train_state(pr.engine.ReplicaMesh(2), pr.ssgd(tx), START)


def is_free(node):
  return isinstance(node, contrib.ScheduleFreeState)


class OtherOutputsTest(parameterized.TestCase):
  """An output made of the parameters is not that of schedule-free."""

  @parameterized.parameters(
    lambda tx: pr.easgd(tx, period=2, alpha=0.2),
    lambda tx: pr.tail_averaging(tx, start_step=2),
  )
  def test_is_refused_unless_meant(self, make):
    mesh = pr.engine.ReplicaMesh(4, 2)
    with self.assertRaisesRegex(ValueError, 'ScheduleFreeState.*evaluated_at'):
      pr.engine.create_train_state(mesh, make(free()), START)
    early = pr.chain(pr.algorithms.average_iterates(2), pr.step(free()))
    state = pr.engine.create_train_state(mesh, early, START)
    with self.assertRaisesRegex(ValueError, 'ScheduleFreeState.*evaluated_at'):
      pr.engine.consensus(early, state)
    with self.assertRaisesRegex(ValueError, 'ScheduleFreeState.*evaluated_at'):
      trained(early)
    meant = make(
      pr.optimizers.evaluated_at(free(), lambda state, params: params)
    )
    pr.engine.create_train_state(mesh, meant, START)


class OtherOptimizersTest(parameterized.TestCase):
  @parameterized.parameters(4, 5)
  def test_sam_is_evaluated_where_its_steps_began(self, num_steps):
    def sam():
      return contrib.sam(optax.sgd(0.1), optax.sgd(0.5), sync_period=2)

    algorithm = pr.ssgd(sam())
    _, state = trained(algorithm, n=1, num_devices=1, num_steps=num_steps)
    want, _ = plain(sam(), 0, num_steps=4)  # whole cycles
    got, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_lookahead_is_evaluated_at_its_slow_point(self):
    def lookahead():
      return optax.lookahead(optax.sgd(0.1), 2, 0.5)

    start = optax.LookaheadParams.init_synced(START)
    algorithm = pr.chain(pr.step(lookahead()))
    mesh, state = trained(algorithm, start, n=2)
    x, _ = plain(lookahead(), 0, start)
    point = mesh.gather(state.params)
    np.testing.assert_allclose(point.slow[0], x.slow, rtol=1e-5)
    np.testing.assert_allclose(point.fast[0], x.fast, rtol=1e-5)
    got, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_allclose(got.slow, point.slow.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(got.fast, got.slow)

  def test_lookahead_needs_its_two_points(self):
    tx = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    with self.assertRaisesRegex(ValueError, r'LookaheadParams\.init_synced'):
      pr.engine.create_train_state(pr.engine.ReplicaMesh(2), pr.ssgd(tx), START)

  def test_most_are_evaluated_at_the_parameters(self):
    algorithm = pr.chain(pr.step(optax.adam(0.1)))
    mesh, state = trained(algorithm)
    got, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_allclose(
      got, mesh.gather(state.params).mean(axis=0), rtol=1e-6
    )


class EvaluatedAtTest(parameterized.TestCase):
  def ahead(self):
    tx = optax.sgd(0.1, momentum=0.9)
    return pr.optimizers.evaluated_at(
      tx, lambda state, x: x - 0.09 * state[0].trace
    )

  def test_says_where(self):
    algorithm = pr.k_avg(self.ahead(), period=2)
    mesh, state = trained(algorithm)
    as_it_was = pr.k_avg(optax.sgd(0.1, momentum=0.9), period=2)
    _, other = trained(as_it_was)
    x, trace = mesh.gather((other.params, other.opt_state[0].trace))
    np.testing.assert_array_equal(mesh.gather(state.params), x)
    got, _ = pr.engine.consensus(algorithm, state)
    np.testing.assert_allclose(got, (x - 0.09 * trace).mean(axis=0), rtol=1e-5)

  def test_overrides_what_is_known(self):
    tx = pr.optimizers.evaluated_at(free(), lambda state, x: state.z)
    algorithm = pr.ssgd(tx)
    mesh, state = trained(algorithm, n=1, num_devices=1)
    got, _ = pr.engine.consensus(algorithm, state)
    z = mesh.gather(state.opt_state.inner.z)
    np.testing.assert_allclose(got, z[0], rtol=1e-6)

  def test_can_be_reset(self):
    algorithm = pr.fedavg(self.ahead(), period=2)
    mesh, state = trained(algorithm, num_steps=4)
    got, _ = pr.engine.consensus(algorithm, state)
    x = mesh.gather(state.params)
    np.testing.assert_allclose(got, x.mean(axis=0), rtol=1e-6)

  def test_is_of_an_optimizer_and_a_function(self):
    with self.assertRaisesRegex(ValueError, 'expects an optax transformation'):
      pr.optimizers.evaluated_at(0.1, lambda state, x: x)
    with self.assertRaisesRegex(ValueError, 'expects a function of the state'):
      pr.optimizers.evaluated_at(optax.sgd(0.1), 'params')


if __name__ == '__main__':
  absltest.main()
