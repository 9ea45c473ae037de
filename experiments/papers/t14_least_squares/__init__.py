"""T14: mini-batches, tail averages and parameter mixing on least squares."""

from experiments.papers.t14_least_squares import drawing_risks, judging, runs
from experiments.papers.target import Outcome, Setting, Target


def _measure(setting: Setting) -> Outcome:
  """Run SGD with every batch size, without label noise and from the optimum."""
  del setting
  rows = [runs.of_batch(b) for b in runs.BATCHES]
  last = runs.of_last_iterate()
  lengths = [runs.of_length(t, last) for t in runs.LENGTHS]
  data = {'rows': rows, 'lengths': lengths}
  return Outcome(judging.claims(rows, lengths), data, runs.SEEDS)


TARGET = Target(
  name='t14_least_squares',
  title='Least squares: mini-batches, tail averages, parameter mixing',
  paper='Jain, Kakade, Kidambi, Netrapalli, Sidford 2018 (arXiv 1610.03774); '
  'Gaussian features, exact risks by recursion',
  measure=_measure,
  draw=drawing_risks.draw,
)
