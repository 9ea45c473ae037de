"""The natural gradient against its equations written out, and the cap."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.base import over_block
from tests import harness, reference

# Shape of a parameter, rank asked for.
CASES = (
  ((5, 7), 2),
  ((7, 5), 20),  # more than there is
  ((3, 4, 6), 3),
  ((6,), 2),
  ((1, 5), 1),
  ((2, 2), 1),
  ((3, 3, 4, 8), 4),  # a convolution's
)


def gradients(shape, num_steps=20, seed=0):
  """With a scatter that differs along every axis."""
  rng = np.random.default_rng(seed)
  g = rng.normal(size=(num_steps, *shape))
  for axis, size in enumerate(shape):
    mixed = rng.normal(size=(size, size)) * 2.0 ** -np.arange(size)
    g = np.moveaxis(np.tensordot(mixed, g, (1, axis + 1)), 0, axis + 1)
  return g


def run(tx, grads):
  """The directions for a sequence of gradients of one parameter."""
  state, update = tx.init(grads[0]), jax.jit(tx.update)
  directions = []
  for g in grads:
    direction, state = update(g, state)
    directions.append(direction)
  return np.stack(directions), jax.tree.map(np.asarray, state)


class NaturalGradientTest(parameterized.TestCase):
  @parameterized.product(case=CASES, smoothing=(0.0, 4.0))
  def test_equals_its_equations(self, case, smoothing):
    shape, rank = case
    grads = gradients(shape)
    tx = pr.optimizers.scale_by_natural_gradient(
      rank=rank, smoothing=smoothing, update_rate=0.2
    )
    with jax.enable_x64(True):
      got, _ = run(tx, grads)
    oracle = reference.NaturalGradient(shape, rank, smoothing, 0.2)
    want = np.stack([oracle(g) for g in grads])
    # The oracle squares the condition of its matrices, about 1e3.
    np.testing.assert_allclose(
      got, want, rtol=0, atol=1e-9 * np.abs(want).max()
    )
    turned = np.abs(got[1:] - grads[1:]).max() / np.abs(grads).max()
    self.assertGreater(turned, 0.05)

  def test_equals_its_equations_where_the_floors_are_at_work(self):
    grads = gradients((9, 12), 12)
    grads[5] *= 1e3
    tx = pr.optimizers.scale_by_natural_gradient(rank=3, smoothing=0.5)
    with jax.enable_x64(True):
      got, _ = run(tx, grads)
    oracle = reference.NaturalGradient((9, 12), 3, 0.5, 0.1)
    want = np.stack([oracle(g) for g in grads])
    # The oracle's condition is 1e7 here.
    scale = np.abs(want).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=1e-6)

  @parameterized.parameters(*CASES)
  def test_single_precision_is_near(self, shape, rank):
    grads = gradients(shape)
    tx = pr.optimizers.scale_by_natural_gradient(rank=rank, smoothing=1.0)
    got, state = run(tx, grads.astype(np.float32))
    for x in jax.tree.leaves(state):
      self.assertEqual(x.dtype, jnp.float32)
    with jax.enable_x64(True):
      want, _ = run(tx, grads)
    error = np.abs(got - want).max() / np.abs(want).max()
    self.assertLess(error, 1e-4)

  def test_half_precision_is_computed_in_single(self):
    grads = gradients((5, 7)).astype(jnp.bfloat16)
    tx = pr.optimizers.scale_by_natural_gradient(rank=2)
    got, state = run(tx, grads)
    self.assertEqual(got.dtype, jnp.bfloat16)
    for x in jax.tree.leaves(state):
      self.assertEqual(x.dtype, jnp.float32)
    want, _ = run(tx, grads.astype(np.float32))
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))

  @parameterized.parameters('float64', 'float32', 'bfloat16')
  def test_a_block_is_each_replica_by_itself(self, dtype):
    grads = np.stack([gradients((5, 7), seed=i) for i in range(3)], axis=1)
    tx = pr.optimizers.scale_by_natural_gradient(rank=3)
    block = optax.GradientTransformation(
      over_block(tx.init), over_block(tx.update)
    )
    with jax.enable_x64(True):
      grads = grads.astype(jnp.dtype(dtype))
      got, _ = run(block, grads)
      alone = [run(tx, grads[:, i])[0] for i in range(3)]
    self.assertEqual(got.dtype, grads.dtype)
    eps = float(jnp.finfo(grads.dtype).eps)
    np.testing.assert_allclose(
      got.astype(np.float64),
      np.stack(alone, axis=1).astype(np.float64),
      rtol=0,
      atol=30 * eps * float(np.abs(grads).max()),
    )

  @parameterized.parameters(*CASES)
  def test_keeps_the_norm_and_the_first_gradient(self, shape, rank):
    grads = gradients(shape)
    with jax.enable_x64(True):
      got, _ = run(pr.optimizers.scale_by_natural_gradient(rank=rank), grads)
    norms = [
      np.linalg.norm(x.reshape((len(x), -1)), axis=1) for x in (got, grads)
    ]
    np.testing.assert_allclose(*norms, rtol=1e-12)
    np.testing.assert_allclose(got[0], grads[0], rtol=1e-12)

  @parameterized.parameters(*CASES)
  def test_factors_are_orthonormal_and_positive(self, shape, rank):
    _, state = run(
      pr.optimizers.scale_by_natural_gradient(rank=rank),
      gradients(shape).astype(np.float32),
    )
    sizes = [size for size in shape if size > 1]
    (factors,) = state.factors
    for size, factor in zip(sizes, factors, strict=True):
      self.assertEqual(factor.basis.shape, (min(rank, size - 1), size))
      np.testing.assert_allclose(
        factor.basis @ factor.basis.T, np.eye(len(factor.basis)), atol=1e-5
      )
      self.assertGreaterEqual(factor.eigenvalues.min(), 0)
      self.assertGreater(factor.scale, 0)

  def test_finds_the_scatter_that_is_of_its_form(self):
    # X of orthogonal rows: X'X / M has eigenvalues 25, 9, 1, 1, 1, 1.
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    scatter = q @ np.diag([25.0, 9, 1, 1, 1, 1]) @ q.T
    x = np.sqrt(6) * np.diag([5.0, 3, 1, 1, 1, 1]) @ q.T
    tx = pr.optimizers.scale_by_natural_gradient(rank=2, smoothing=0.0)
    with jax.enable_x64(True):
      _, state = run(tx, np.tile(x, (300, 1, 1)))
    basis, d, rho = state.factors[0][1]
    np.testing.assert_allclose(d, [24, 8], rtol=1e-6)
    self.assertAlmostEqual(float(rho), 1.0, places=6)
    fisher = basis.T @ np.diag(d) @ basis + rho * np.eye(6)
    np.testing.assert_allclose(fisher, scatter, atol=1e-5)

  def test_finds_what_a_softmax_leaves(self):
    # Rows (a, -a) are orthogonal to the vector of equal entries.
    x = np.array([[1.0, -1.0], [2.0, -2.0]])
    tx = pr.optimizers.scale_by_natural_gradient(rank=1)
    with jax.enable_x64(True):
      _, state = run(tx, np.tile(x, (300, 1, 1)))
    basis = np.abs(state.factors[0][1].basis[0])
    np.testing.assert_allclose(basis, np.sqrt([0.5, 0.5]), atol=1e-6)

  @parameterized.parameters(0, 3)
  def test_a_zero_gradient_is_zero_and_teaches_nothing(self, when):
    grads = gradients((4, 3), 6).astype(np.float32)
    with_zero = np.insert(grads, when, 0, axis=0)
    tx = pr.optimizers.scale_by_natural_gradient(rank=2)
    want, _ = run(tx, grads)
    got, _ = run(tx, with_zero)
    np.testing.assert_array_equal(got[when], np.zeros((4, 3)))
    np.testing.assert_array_equal(np.delete(got, when, axis=0), want)

  def test_tiny_gradients_are_preconditioned_as_large_ones(self):
    grads = gradients((4, 3))
    tx = pr.optimizers.scale_by_natural_gradient(rank=2)
    with jax.enable_x64(True):
      want, _ = run(tx, grads)
      got, _ = run(tx, 1e-12 * grads)
    np.testing.assert_allclose(got, 1e-12 * want, rtol=1e-9)

  @parameterized.parameters(1e-6, 1e3, 1e6)
  def test_survives_gradients_of_other_lengths(self, factor):
    grads = gradients((9, 30), 30).astype(np.float32)
    grads[10:20] *= factor
    got, state = run(pr.optimizers.scale_by_natural_gradient(rank=5), grads)
    self.assertTrue(np.isfinite(got).all())
    for factor in state.factors[0]:
      np.testing.assert_allclose(
        factor.basis @ factor.basis.T, np.eye(5), atol=1e-5
      )

  def test_large_blocks_cannot_hang(self):
    # Several batched triangular solves in one program hang on CPU.
    tx = pr.optimizers.scale_by_natural_gradient(rank=2)
    gradients = {'a': jnp.ones((64, 4, 3)), 'b': jnp.ones((64, 5))}
    state = jax.vmap(tx.init)(gradients)
    jaxpr = jax.make_jaxpr(jax.vmap(tx.update))(gradients, state).jaxpr
    found = {eqn.primitive.name for eqn, _ in harness.equations(jaxpr)}
    self.assertIn('cholesky', found)
    self.assertNotIn('triangular_solve', found)

  def test_parameters_of_any_structure(self):
    params = {'w': jnp.ones((3, 2)), 'b': jnp.ones(2), 'scale': jnp.ones(())}
    tx = pr.optimizers.scale_by_natural_gradient()
    direction, state = tx.update(params, tx.init(params))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
      direction,
      params,
    )
    self.assertEqual([len(f) for f in state.factors], [1, 0, 2])

  @parameterized.parameters(
    ({'rank': 0}, 'rank must be an integer >= 1, got 0'),
    ({'rank': 2.0}, 'rank must be an integer >= 1, got 2.0'),
    ({'smoothing': -1}, 'smoothing must be >= 0 and finite, got -1'),
    ({'smoothing': np.inf}, 'smoothing must be >= 0 and finite, got inf'),
    ({'update_rate': 0}, r'update_rate must be in \(0, 1\), got 0'),
    ({'update_rate': 1.0}, r'update_rate must be in \(0, 1\), got 1.0'),
  )
  def test_arguments_are_in_range(self, keywords, message):
    with self.assertRaisesRegex(ValueError, message):
      pr.optimizers.scale_by_natural_gradient(**keywords)


UPDATES = {'a': np.float32([3.0, 0.0]), 'b': np.float32(4.0)}


class LimitChangeTest(parameterized.TestCase):
  @parameterized.parameters((5.0, 1.0), (6.0, 1.0), (2.5, 0.5), (np.inf, 1.0))
  def test_scales_all_parameters_together(self, cap, factor):
    tx = pr.optimizers.limit_change(cap)
    got, _ = tx.update(UPDATES, tx.init(UPDATES))
    for name, u in UPDATES.items():
      np.testing.assert_allclose(got[name], factor * u, rtol=1e-6)

  def test_zero_stays_zero(self):
    tx = pr.optimizers.limit_change(1.0)
    got, _ = tx.update({'a': np.zeros(3, np.float32)}, tx.init({}))
    np.testing.assert_array_equal(got['a'], np.zeros(3))

  def test_a_step_within_the_cap_keeps_its_bits(self):
    u = np.random.default_rng(0).normal(size=5).astype(np.float32)
    got, _ = pr.optimizers.limit_change(10.0).update(u, optax.EmptyState())
    np.testing.assert_array_equal(got, u)

  def test_the_norm_of_half_precision_is_in_single(self):
    # 300^2 = 90000 is more than float16 has.
    u = np.full(4, 300, np.float16)
    got, _ = pr.optimizers.limit_change(60.0).update(u, optax.EmptyState())
    self.assertEqual(got.dtype, jnp.float16)
    np.testing.assert_array_equal(got, np.full(4, 30, np.float16))

  def test_a_block_is_each_replica_by_itself(self):
    u = np.float32([[3.0, 4.0], [30.0, 40.0]])
    tx = pr.optimizers.limit_change(5.0)
    got, _ = over_block(tx.update)(u, optax.EmptyState())
    np.testing.assert_allclose(got, [[3, 4], [3, 4]], rtol=1e-6)

  @parameterized.parameters(0, -1.0, float('nan'), '2', None)
  def test_the_cap_is_positive(self, cap):
    with self.assertRaisesRegex(ValueError, 'max_change must be > 0, got'):
      pr.optimizers.limit_change(cap)


if __name__ == '__main__':
  absltest.main()
