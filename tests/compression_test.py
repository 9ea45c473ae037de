"""Compressors: the code, the decoded value, and its error."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import prsgd_jax as pr
from prsgd_jax.mixing import chunks, codecs
from tests import reference

EVERY = {
  'bare_signs': codecs.bare_signs,
  'bin_means': pr.codecs.bin_means,
  'chunked_top_k': lambda: pr.codecs.chunked_top_k(2, chunk=2),
  'chunked_top_k_bins': lambda: pr.codecs.chunked_top_k(
    2, values=pr.codecs.bin_means()
  ),
  'e3m0': pr.codecs.e3m0,
  'levels_1': lambda: pr.codecs.stochastic_levels(1),
  'levels_4': lambda: pr.codecs.stochastic_levels(4),
  'levels_300': lambda: pr.codecs.stochastic_levels(300),
  'random_k': lambda: pr.codecs.random_k(0.25),
  'signs': pr.codecs.signs,
  'small_float': lambda: pr.codecs.small_float(2, 2),
  'ternary': pr.codecs.ternary,
  'top_k': lambda: pr.codecs.top_k(0.25),
  'top_k_levels': lambda: pr.codecs.top_k(0.5, pr.codecs.stochastic_levels(4)),
  'uncompressed': pr.codecs.uncompressed,
}


class StrictTest(parameterized.TestCase):
  """Nothing relies on a promotion of types or of ranks."""

  @parameterized.parameters(*EVERY)
  def test_the_same_numbers(self, name):
    w = np.linspace(-1, 1, 12).reshape(3, 4)
    dtypes = ('float32', 'bfloat16', 'float16')
    v = {dtype: w.astype(jnp.dtype(dtype)) for dtype in dtypes}
    q = EVERY[name]()

    def coded():
      # A new function each time, because a trace depends on the settings.
      return jax.jit(lambda k, v: q.decode(q.encode(k, v), v))(key(), v)

    want = coded()
    with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
      got = coded()
    for dtype in dtypes:
      self.assertEqual(got[dtype].dtype, np.float32)
      np.testing.assert_array_equal(got[dtype], want[dtype])

  def test_an_addition_of_unlike_types_is_refused_there(self):
    with (
      jax.numpy_dtype_promotion('strict'),
      self.assertRaises(ValueError),
    ):
      jax.jit(lambda v: v + (v > 0))(jnp.ones(2))


UNBIASED = ('levels_1', 'levels_4', 'levels_300', 'ternary')
# A bare sign has no zero and no NaN.
WITH_ZERO = tuple(name for name in EVERY if name != 'bare_signs')


def key(seed=0):
  return jax.random.key(seed, impl='threefry2x32')


def shapes_of(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def compressed(compressor, tree, seed=0):
  """Q(tree), on the host."""
  shapes = shapes_of(tree)

  @jax.jit
  def both(key, tree):
    return compressor.decode(compressor.encode(key, tree), shapes)

  return jax.device_get(both(key(seed), tree))


def samples(compressor, v, num_samples):
  """Q(v) with many keys, [num_samples, n]."""
  keys = jax.random.split(key(), num_samples)
  shape = jax.ShapeDtypeStruct(v.shape, v.dtype)
  one = jax.jit(
    jax.vmap(lambda k: compressor.decode(compressor.encode(k, v), shape))
  )
  return np.asarray(one(keys))


def vector(n=20, seed=0):
  return np.random.default_rng(seed).normal(size=n)


class EveryCompressorTest(parameterized.TestCase):
  @parameterized.parameters(*EVERY)
  def test_gives_back_the_tree_in_single_precision(self, name):
    tree = {
      f'{dtype} {rank}': np.asarray(v, jnp.dtype(dtype))
      for dtype in ('float32', 'bfloat16')
      for rank, v in enumerate((-2.0, vector(9), vector(12).reshape(3, 4)))
    }
    out = compressed(EVERY[name](), tree)
    for leaf in tree:
      self.assertEqual(out[leaf].shape, tree[leaf].shape)
      self.assertEqual(out[leaf].dtype, np.float32)

  @parameterized.parameters(*EVERY)
  def test_keeps_double_precision(self, name):
    with jax.enable_x64(True):
      codes = jax.eval_shape(EVERY[name]().encode, key(), vector())
      out = compressed(EVERY[name](), vector())
    self.assertEqual(out.dtype, np.float64)
    for code in jax.tree.leaves(codes):
      self.assertFalse(code.weak_type, code)

  @parameterized.parameters(*WITH_ZERO)
  def test_nothing_comes_of_nothing(self, name):
    tree = {'empty': np.zeros(0, np.float32), 'zero': np.zeros(5, np.float32)}
    out = compressed(EVERY[name](), tree)
    np.testing.assert_array_equal(out['zero'], 0)
    self.assertEqual(out['empty'].shape, (0,))

  @parameterized.parameters(*(name for name in WITH_ZERO if name != 'random_k'))
  def test_a_nan_comes_out_somewhere(self, name):
    v = np.array([1.0, np.nan, 3.0, 4.0], np.float32)
    self.assertTrue(np.isnan(compressed(EVERY[name](), v)).any())

  @parameterized.parameters(*UNBIASED, 'random_k')
  def test_leaves_are_drawn_independently(self, name):
    v = vector(64).astype(np.float32)
    out = compressed(EVERY[name](), [v, v])
    self.assertTrue((out[0] != out[1]).any())
    again = compressed(EVERY[name](), [v, v])
    np.testing.assert_array_equal(out[0], again[0])
    other = compressed(EVERY[name](), [v, v], seed=1)
    self.assertTrue((out[0] != other[0]).any())

  @parameterized.parameters(*EVERY)
  def test_only_real_floats_are_taken(self, name):
    with self.assertRaisesRegex(ValueError, 'floating leaves, got int32'):
      EVERY[name]().encode(key(), np.arange(3, dtype=np.int32))
    with self.assertRaisesRegex(ValueError, 'floating leaves, got complex64'):
      EVERY[name]().encode(key(), np.ones(3, np.complex64))


class CodedBytesTest(parameterized.TestCase):
  """Small on the wire: by hand, for leaves of 1000 and of 10 entries."""

  TREE = (np.zeros((20, 50), np.float32), np.zeros(10, np.float32))

  @parameterized.named_parameters(
    ('uncompressed', pr.codecs.uncompressed(), 4000 + 40),
    # One, two, three, four bits an entry in whole bytes for each bit; a scale.
    ('bare_signs', codecs.bare_signs(), 125 + 2),
    ('signs', pr.codecs.signs(), 125 + 4 + 2 + 4),
    ('ternary', pr.codecs.ternary(), 2 * 125 + 4 + 2 * 2 + 4),
    ('levels_1', pr.codecs.stochastic_levels(1), 2 * 125 + 4 + 2 * 2 + 4),
    ('levels_2', pr.codecs.stochastic_levels(2), 3 * 125 + 4 + 3 * 2 + 4),
    ('levels_3', pr.codecs.stochastic_levels(3), 3 * 125 + 4 + 3 * 2 + 4),
    ('levels_4', pr.codecs.stochastic_levels(4), 4 * 125 + 4 + 4 * 2 + 4),
    ('levels_127', pr.codecs.stochastic_levels(127), 8 * 125 + 4 + 8 * 2 + 4),
    ('levels_128', pr.codecs.stochastic_levels(128), 9 * 125 + 4 + 9 * 2 + 4),
    # Values of four bytes, places of two; the second leaf keeps its one.
    ('top_k', pr.codecs.top_k(0.01), 10 * 6 + 1 * 6),
    # A sign, and the codes of the entries that have it.
    (
      'top_k_signs',
      pr.codecs.top_k(0.1, pr.codecs.signs()),
      100 * 2 + 13 + 4 + 2 + 1 + 4,
    ),
    # Places of 10 bits in a chunk of 1000, of 4 bits in one of 10.
    ('chunked', pr.codecs.chunked_top_k(8), 8 * 4 + 10 + 8 * 4 + 4),
    # Two bits for each of the values, and the means of four bins.
    (
      'chunked_bins',
      pr.codecs.chunked_top_k(8, values=pr.codecs.bin_means()),
      2 + 16 + 10 + 2 + 16 + 4,
    ),
    ('bin_means', pr.codecs.bin_means(), 250 + 16 + 2 * 2 + 16),
    ('e3m0', pr.codecs.e3m0(), 4 * 125 + 4 + 4 * 2 + 4),
    # Values, and one seed of eight bytes for each leaf.
    ('random_k', pr.codecs.random_k(0.01), 10 * 4 + 8 + 1 * 4 + 8),
  )
  def test_by_hand(self, compressor, expected):
    self.assertEqual(pr.codecs.coded_bytes(compressor, self.TREE), expected)
    codes = jax.jit(compressor.encode)(key(), self.TREE)
    sent = sum(np.asarray(x).nbytes for x in jax.tree.leaves(codes))
    self.assertEqual(sent, expected)

  @parameterized.parameters(*range(1, 20), 127, 128, 32767)
  def test_levels_take_the_bits_they_need(self, levels):
    n = 8
    bits = int(np.ceil(np.log2(2 * levels + 1)))
    got = pr.codecs.coded_bytes(
      pr.codecs.stochastic_levels(levels),
      jax.ShapeDtypeStruct((n,), jnp.float32),
    )
    self.assertEqual(got, bits * n // 8 + 4)

  def test_places_in_large_leaves_take_four_bytes(self):
    def of(n):
      shape = jax.ShapeDtypeStruct((n,), jnp.float32)
      return pr.codecs.coded_bytes(pr.codecs.top_k(1e-9), shape)

    self.assertEqual(of(2**16), 4 + 2)
    self.assertEqual(of(2**16 + 1), 4 + 4)

  def test_half_precision_is_sent_in_single(self):
    half = jax.ShapeDtypeStruct((16,), jnp.bfloat16)
    self.assertEqual(pr.codecs.coded_bytes(pr.codecs.uncompressed(), half), 64)


class PackingTest(parameterized.TestCase):
  @parameterized.product(bits=(1, 2, 3, 8, 16), n=(1, 8, 9, 100))
  def test_round_trip(self, bits, n):
    rng = np.random.default_rng(bits * n)
    numbers = rng.integers(0, 2**bits, n)
    numbers[0] = 2**bits - 1
    planes = jax.jit(lambda x: codecs.pack(x, bits))(numbers)
    self.assertEqual(planes.dtype, jnp.uint8)
    self.assertEqual(planes.shape, (bits, -(-n // 8)))
    out = jax.jit(lambda x: codecs.unpack(x, n))(planes)
    np.testing.assert_array_equal(out, numbers)
    self.assertEqual(out.dtype, jnp.uint32)


class UnbiasedTest(parameterized.TestCase):
  """E Q(v) = v, and E|Q(v) - v|^2 as it is in closed form.

  An entry of share a = s |v_i| / norm is rounded up with probability p = a -
  floor(a), so its variance is (norm / s)^2 p (1 - p).
  """

  NUM = 40_000

  def variance(self, v, levels, norm):
    share = levels * np.abs(v) / norm
    p = share - np.floor(share)
    return (norm / levels) ** 2 * p * (1 - p)

  @parameterized.parameters(
    ('levels_1', 1), ('levels_4', 4), ('levels_300', 300), ('ternary', 1)
  )
  def test_mean_and_variance(self, name, levels):
    v = vector().astype(np.float32)
    norm = np.abs(v).max() if name == 'ternary' else np.linalg.norm(v)
    variance = self.variance(v.astype(np.float64), levels, norm)
    drawn = samples(EVERY[name](), v, self.NUM).astype(np.float64)
    # Five standard errors of each of 20 means, and rounding in float32.
    error = np.abs(drawn.mean(axis=0) - v)
    bound = 5 * np.sqrt(variance / self.NUM) + 1e-6
    self.assertTrue((error < bound).all(), error / bound)
    # The relative error of a variance is about sqrt((kurtosis - 1) / NUM), for
    # all entries together below 2 %.
    total = np.square(drawn - v).sum(axis=1).mean()
    np.testing.assert_allclose(total, variance.sum(), rtol=0.05)

  @parameterized.product(
    levels=(1, 2, 4, 16, 100), n=(1, 2, 10, 1000), seed=(0, 1, 2)
  )
  def test_variance_is_below_the_papers_bound(self, levels, n, seed):
    rng = np.random.default_rng(seed)
    for v in (rng.normal(size=n), rng.standard_cauchy(size=n), np.ones(n)):
      norm = np.linalg.norm(v)
      variance = self.variance(v, levels, norm).sum()
      bound = min(n / levels**2, np.sqrt(n) / levels) * norm**2
      self.assertLessEqual(variance, bound * (1 + 1e-12))

  @parameterized.parameters(1, 4, 300)
  def test_levels_are_rounded_up_by_the_draw(self, levels):
    # PAPERS 6, with the numbers drawn.
    with jax.enable_x64(True):
      v = vector()
      drawn = jax.random.uniform(jax.random.fold_in(key(), 0), v.shape)
      out = compressed(pr.codecs.stochastic_levels(levels), v)
      ternary = compressed(pr.codecs.ternary(), v)
      want = reference.stochastic_levels(v, levels=levels, uniform=drawn)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-14)
    want = reference.ternary(v, uniform=np.asarray(drawn))
    np.testing.assert_allclose(ternary, want, rtol=0, atol=1e-14)

  def test_of_a_multiple_of_the_levels_nothing_is_lost(self):
    v = np.array([3.0, -4.0, 0, 0], np.float32)
    out = compressed(pr.codecs.stochastic_levels(5), v)
    np.testing.assert_allclose(out, v, rtol=1e-6)

  def test_ternary_is_minus_s_zero_and_s(self):
    v = vector(500).astype(np.float32)
    out = compressed(pr.codecs.ternary(), v)
    s = np.abs(v).max()
    self.assertEqual(set(np.unique(out).tolist()), {-s, 0.0, s})
    nonzero = out != 0
    np.testing.assert_array_equal(np.sign(out[nonzero]), np.sign(v[nonzero]))


class ContractionTest(parameterized.TestCase):
  """E|Q(v) - v|^2 <= (1 - delta)|v|^2."""

  @parameterized.product(fraction=(0.01, 0.25, 0.5, 1.0), n=(1, 33))
  def test_top_k(self, fraction, n):
    with jax.enable_x64(True):
      v = vector(n)
      out = compressed(pr.codecs.top_k(fraction), v)
    k = max(1, round(fraction * n))
    np.testing.assert_array_equal(out, reference.top_k(v, k=k))
    self.assertEqual(np.count_nonzero(out), k)
    left = np.square(out - v).sum()
    self.assertLessEqual(left, (1 - k / n) * np.square(v).sum() + 1e-15)

  def test_of_equal_entries_the_first_are_kept(self):
    v = np.array([1.0, -2.0, 2.0, 2.0, -1.0], np.float32)
    np.testing.assert_array_equal(
      compressed(pr.codecs.top_k(0.4), v), [0, -2.0, 2.0, 0, 0]
    )
    np.testing.assert_array_equal(
      compressed(pr.codecs.top_k(0.8), v), [1.0, -2.0, 2.0, 2.0, 0]
    )

  def test_random_k_is_its_share_in_expectation(self):
    v, num = vector().astype(np.float32), 20_000
    drawn = samples(pr.codecs.random_k(0.25), v, num)
    kept = drawn != 0
    np.testing.assert_array_equal(kept.sum(axis=1), 5)
    np.testing.assert_array_equal(drawn[kept], np.tile(v, (num, 1))[kept])
    # Each entry with probability 1/4: five standard errors.
    np.testing.assert_allclose(
      kept.mean(axis=0), 0.25, rtol=0, atol=5 * np.sqrt(3 / 16 / num)
    )
    left = np.square(drawn - v).sum(axis=1).mean() / np.square(v).sum()
    np.testing.assert_allclose(left, 0.75, rtol=0.01)

  def test_random_k_is_drawn_again_from_its_seed(self):
    v = vector().astype(np.float32)
    code = jax.jit(pr.codecs.random_k(0.25).encode)(key(), v)[0]
    places = jax.jit(lambda s: codecs.drawn_places(s, 20, 5))(code.seed)
    np.testing.assert_array_equal(code.values, v[np.asarray(places)])
    self.assertLen(set(places.tolist()), 5)

  @parameterized.parameters(1, 10, 33)
  def test_signs(self, n):
    with jax.enable_x64(True):
      v = vector(n)
      out = compressed(pr.codecs.signs(), v)
    np.testing.assert_allclose(out, reference.signs(v), rtol=1e-15)
    left = np.square(out - v).sum()
    want = np.square(v).sum() - np.abs(v).sum() ** 2 / n
    np.testing.assert_allclose(left, want, rtol=1e-12, atol=1e-15)

  def test_the_sign_of_zero_is_plus(self):
    v = np.array([-1.0, 0, 3.0, -0.0], np.float32)
    np.testing.assert_array_equal(
      compressed(pr.codecs.signs(), v), [-1, 1, 1, 1]
    )
    np.testing.assert_array_equal(
      compressed(codecs.bare_signs(), v), [-1, 1, 1, 1]
    )

  @parameterized.product(n=(1, 5, 64), seed=(0, 1))
  def test_bin_means(self, n, seed):
    with jax.enable_x64(True):
      v = vector(n, seed)
      v += np.sign(v)  # far from zero
      out = compressed(pr.codecs.bin_means(), v)
    np.testing.assert_allclose(out, reference.bin_means(v), rtol=1e-14)
    self.assertLessEqual(len(np.unique(out)), 4)
    self.assertLessEqual(np.square(out - v).sum(), np.square(v).sum())


class SmallFloatTest(parameterized.TestCase):
  @parameterized.product(exponent=(1, 2, 3, 4), mantissa=(0, 1, 3), n=(1, 200))
  def test_is_the_nearest_of_all_numbers(self, exponent, mantissa, n):
    with jax.enable_x64(True):
      v = np.random.default_rng(n).standard_cauchy(n)
      out = compressed(pr.codecs.small_float(exponent, mantissa), v)
      again = compressed(pr.codecs.small_float(exponent, mantissa), out)
    want = reference.small_float(
      v, exponent_bits=exponent, mantissa_bits=mantissa
    )
    np.testing.assert_allclose(out, want, rtol=1e-14)
    np.testing.assert_allclose(again, out, rtol=1e-14)

  def test_e3m0_is_zero_and_seven_powers_of_two(self):
    # Powers of two are themselves, numbers in the middle go up, below the half
    # of the smallest there is zero.
    v = np.array([-64, 32, 16, 8, 4, 2, 1, 0, 48, 1.4, 0.5, -0.49], np.float32)
    out = compressed(pr.codecs.e3m0(), v)
    np.testing.assert_array_equal(
      out, [-64, 32, 16, 8, 4, 2, 1, 0, 64, 1, 1, 0]
    )


class ChunksTest(parameterized.TestCase):
  SHAPES = ((), (1,), (7,), (64,), (130,), (6, 8), (67, 4), (3, 3, 4, 10))

  @parameterized.product(shape=SHAPES, chunk=(1, 4, 64))
  def test_chunks_are_joined_again(self, shape, chunk):
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    parts = jax.jit(lambda x: chunks.split(x, chunk))(x)
    joined = jax.jit(lambda parts: chunks.join(parts, shape))(parts)
    np.testing.assert_array_equal(joined, x)
    matrix = x.reshape(chunks.matrix_shape(shape))
    want = reference.chunk_places(matrix.shape, chunk)
    want = [[matrix[place] for place in places] for places in want]
    np.testing.assert_array_equal(parts.reshape((len(want), -1)), want)

  @parameterized.parameters(*SHAPES)
  def test_frequencies_are_undone(self, *shape):
    with jax.enable_x64(True):
      x = vector(np.prod(shape, dtype=int)).reshape(shape)
      there = jax.jit(lambda x: chunks.to_frequencies(x, 8))(x)
      back = jax.jit(lambda x: chunks.from_frequencies(x, 8))(there)
    self.assertEqual(there.shape, shape)
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-14)
    # Orthonormal: an error of the frequencies is as large as that of x.
    np.testing.assert_allclose(
      np.square(there).sum(), np.square(x).sum(), rtol=1e-13
    )

  def test_frequencies_are_those_of_the_formula(self):
    with jax.enable_x64(True):
      x = vector(24).reshape((4, 6))
      got = jax.jit(lambda x: chunks.to_frequencies(x, 3))(x)
    want = np.block(
      [
        [reference.cosine_transform(x[a : a + 2, b : b + 3]) for b in (0, 3)]
        for a in (0, 2)
      ]
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)

  @parameterized.product(
    shape=((6, 8), (12,), (2, 3, 4)), k=(1, 3, 100), chunk=(2, 4, 64)
  )
  def test_chunked_top_k(self, shape, k, chunk):
    with jax.enable_x64(True):
      v = vector(np.prod(shape)).reshape(shape)
      out = compressed(pr.codecs.chunked_top_k(k, chunk=chunk), v)
      binned = compressed(
        pr.codecs.chunked_top_k(k, chunk=chunk, values=pr.codecs.bin_means()), v
      )
    want = functools.partial(
      reference.chunked_top_k,
      v,
      shape=chunks.matrix_shape(shape),
      k=k,
      chunk=chunk,
    )
    np.testing.assert_array_equal(out, want())
    np.testing.assert_allclose(
      binned, want(values=reference.bin_means), rtol=0, atol=1e-14
    )

  def test_a_place_of_4096_takes_12_bits(self):
    shape = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    whole = pr.codecs.coded_bytes(pr.codecs.chunked_top_k(64), shape)
    self.assertEqual(whole, 4 * 64 * (4 + 1.5))


class ValuesTest(parameterized.TestCase):
  def test_kept_entries_are_compressed(self):
    v = np.array([1.0, -4.0, 0.5, 2.0], np.float32)
    out = compressed(pr.codecs.top_k(0.5, pr.codecs.signs()), v)
    np.testing.assert_array_equal(out, [0, -3, 0, 3])

  def test_kept_entries_are_drawn_from_the_key_of_the_leaf(self):
    with jax.enable_x64(True):
      v = vector(8)
      out = compressed(pr.codecs.top_k(0.5, pr.codecs.stochastic_levels(3)), v)
      leaf = jax.random.fold_in(jax.random.fold_in(key(), 0), 0)
      drawn = np.asarray(jax.random.uniform(leaf, (4,), jnp.float64))
    kept = np.argsort(-np.abs(v), kind='stable')[:4]
    want = np.zeros(8)
    want[kept] = reference.stochastic_levels(v[kept], levels=3, uniform=drawn)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-14)


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      lambda: pr.codecs.small_float(0, 1),
      'exponent_bits must be an integer >= 1',
    ),
    (
      lambda: pr.codecs.small_float(3, -1),
      'mantissa_bits must be an integer >= 0',
    ),
    (lambda: pr.codecs.small_float(4, 4), r'must be <= 7.*got 4 \+ 4'),
    (lambda: pr.codecs.bin_means(1), r'bins must be in \[2, 256\], got 1'),
    (lambda: pr.codecs.bin_means(sigmas=0), 'sigmas must be > 0, got 0'),
    (
      lambda: pr.codecs.chunked_top_k(0),
      'num_kept must be an integer >= 1, got 0',
    ),
    (lambda: pr.codecs.chunked_top_k(chunk=0), 'chunk must be an integer >= 1'),
    (lambda: pr.codecs.top_k(0.5, 0.5), 'expected a compressor.*got 0.5'),
    (
      lambda: pr.codecs.chunked_top_k(values='e3m0'),
      'expected a compressor.*e3m0',
    ),
  )
  def test_arguments(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  @parameterized.parameters(0, -1, 2.0, True, None)
  def test_levels_are_a_positive_integer(self, bad):
    with self.assertRaisesRegex(
      ValueError, f'levels must be an integer >= 1, got {bad}'
    ):
      pr.codecs.stochastic_levels(bad)

  def test_levels_are_at_most_of_16_bits(self):
    with self.assertRaisesRegex(
      ValueError,
      'levels must be <= 32767, got 32768; use pr.codecs.uncompressed',
    ):
      pr.codecs.stochastic_levels(2**15)

  @parameterized.product(
    make=(pr.codecs.top_k, pr.codecs.random_k), bad=(0, -0.1, 1.5, float('nan'))
  )
  def test_fraction_is_in_range(self, make, bad):
    with self.assertRaisesRegex(
      ValueError, rf'fraction must be in \(0, 1\], got {bad}'
    ):
      make(bad)


if __name__ == '__main__':
  absltest.main()
