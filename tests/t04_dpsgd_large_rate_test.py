"""Tests of `experiments/papers/t04_dpsgd_large_rate`: counts and phases."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from experiments.papers import quantities
from experiments.papers.t04_dpsgd_large_rate import mnist, trace, window

SEEDS = len(mnist.SEEDS)


def losses(num_trained):
  """The final losses of all seeds, some of which trained."""
  return np.where(np.arange(SEEDS) < num_trained, 0.3, 2.3)


def verdicts(**trained):
  """The verdicts on methods by how many seeds they train, others all."""
  curves = {
    name: [
      [[float(x)] * 10 for x in losses(trained.get(name[:4], SEEDS))]
      for _ in window.RATES
    ]
    for name in mnist.METHODS
  }
  return [claim.verdict for claim in window.claims(curves)]


class NoiseTest(absltest.TestCase):
  def test_constant_noise_has_its_deviation_in_all_parameters(self):
    params = {'a': jnp.ones((100, 50)), 'b': jnp.zeros(50)}
    moved = mnist.noisy(params, jax.random.key(0, impl='threefry2x32'))
    self.assertAlmostEqual(float(moved['a'].mean()), 1, delta=1e-3)
    for name, own in moved.items():
      deviation = float((own - params[name]).std())
      self.assertAlmostEqual(deviation / mnist.NOISE, 1, delta=0.3)


class WindowTest(parameterized.TestCase):
  def test_counts_are_shown_as_counts(self):
    found = window._counts({'rate 1.5': losses(3)})
    self.assertEqual(found.cases['rate 1.5'].value, 3)
    (table,) = quantities.tables({'SSGD: trained': found})
    self.assertEqual(table.head, ('case', 'SSGD: trained, seeds'))
    self.assertEqual(table.rows, [('rate 1.5', '3 of 8')])

  @parameterized.parameters(
    ({'warm': 0, 'noise': 2}, 'yes'),
    ({'warm': 7, 'noise': 0}, 'partly'),
    ({'warm': 7, 'noise': 3}, 'no'),
  )
  def test_remedies_of_ssgd(self, trained, verdict):
    made = {
      'SSGD': 0,
      mnist.WARMED: trained['warm'],
      mnist.NOISY: trained['noise'],
      mnist.RING: SEEDS,
    }
    ends = {
      f'rate {rate:g}': {name: losses(n) for name, n in made.items()}
      for rate in window.RATES
    }
    self.assertEqual(window._remedies_claim(ends).verdict, verdict)

  def test_failure_is_told_as_it_is(self):
    ends = {'SSGD': losses(0), mnist.WARMED: losses(7)}
    told = window._told('rate 1.25', ends)
    self.assertIn('2.30 to 2.30 nats in 8 of 8 seeds', told)
    self.assertIn('diverges in 0;', told)
    self.assertIn('trains with 7.', told)
    ends['SSGD'] = np.full(SEEDS, np.inf)
    self.assertIn('diverges in 8;', window._told('rate 1.25', ends))

  @parameterized.parameters((0, 'yes'), (2, 'yes'), (3, 'partly'), (8, 'no'))
  def test_ssgd_must_fail(self, ssgd, verdict):
    self.assertEqual(verdicts(SSGD=ssgd)[0], verdict)

  def test_full_averages_may_fail(self):
    self.assertEqual(verdicts(SSGD=1)[1], 'yes')
    self.assertEqual(verdicts(SSGD=1, **{'W = ': 2})[1], 'partly')
    none = {'W = ': 0, 'PR-S': 0}
    self.assertEqual(verdicts(SSGD=1, **none)[1], 'no')


class TraceTest(absltest.TestCase):
  def test_each_seed_must_dip_before_the_last_quarter(self):
    count = trace.TRACE_STEPS // trace.EVERY

    def run(at):
      return [{'alpha_e': 0.1 if k == at else 1.0} for k in range(count)]

    for steps, verdict in (((3, 3, 3), 'yes'), ((3, 3, count - 2), 'no')):
      claim = trace._step_claim({'n = 5': [run(at) for at in steps]}, '')
      self.assertEqual(claim.verdict, verdict)

  def points(self, rough, calm):
    loss = [2.0] * 3 + [0.2] * 3
    return [
      {
        'step': 40 * (i + 1),
        'loss': one,
        'alpha_e': 0.1 if one > 1 else 1.0,
        'ssgd_noise': 1.0,
        'landscape_noise': rough if one > 1 else calm,
        'smoothness': 2.0,
        'smoothed': 1.0 if one > 1 else 2.0,
      }
      for i, one in enumerate(loss)
    ]

  def test_noise_by_phase(self):
    def noise(rough, calm):
      runs = {'n = 5': [self.points(rough, calm)] * 3}
      return trace._noise_claim(runs, '').verdict

    self.assertEqual(noise(50, 0.1), 'yes')
    self.assertEqual(noise(4, 1), 'partly')
    self.assertEqual(noise(1, 1), 'no')

  def test_smoothing_is_the_ratio_of_eigenvalues(self):
    claim = trace._smoothing_claim({'n = 5': [self.points(1, 1)]}, '')
    self.assertEqual(claim.verdict, 'yes')
    ratio = claim.measured['rough ratio'].cases['n = 5'].value
    self.assertEqual(ratio, 0.5)


if __name__ == '__main__':
  absltest.main()
