"""The records of the runs as curves, and numbers of curves."""

from collections.abc import Mapping, Sequence
import math
from typing import TypeVar

import numpy as np

from experiments.papers import kept_curves, pieces, speed
from experiments.papers.headline.host_times import HostTimes
from experiments.papers.kept_curves import Curve, KeptCurve
from experiments.papers.pieces import Piece
from experiments.running.records import records

# Names that a figure or a claim reads; all are measured at an evaluation.
NAMES = (
  'step',
  'epoch',
  'train_loss',
  'train_loss_mean_statistics',
  'test_accuracy',
  'test_accuracy_mean_statistics',
  'consensus_distance',
  'rounds',
  'bytes_sent',
  'modeled_seconds',
)
# What a kept curve tells about its run.
MADE_BY = ('replicas', 'device', 'cpus', 'jax', 'xla_flags', 'commit')
_DIGITS = 6
# Parts of SSGD's run from which its lowest losses are targets. Several, because
# the loss is noisy before the first drop of the rate, at half of the run. The
# last is so early that a curve with 1.4 times the steps reaches it before the
# drop, at which the loss of all curves falls.
TARGETS = (0.1, speed.BEFORE_DROPS)

# Curve -> seed as text -> values, of JSON types.
Curves = dict[str, dict[str, Curve]]
T = TypeVar('T')


def read(
  runs: Sequence[Piece], *, only_finished: bool = True
) -> tuple[Curves, list[str]]:
  """Read the curves of pieces, without training.

  Args:
    runs: the pieces.
    only_finished: whether to leave out pieces that are not at their end.

  Returns:
    The curves, and the names of the pieces that are missing.
  """
  found: Curves = {}
  missing = []
  for piece in runs:
    done = pieces.progress_of(piece)
    seed = str(piece.config.seed)
    if done.failed and not only_finished:
      continue
    if done.finished or (not only_finished and done.step):
      found.setdefault(piece.label, {})[seed] = _curve_of(piece)
    else:
      missing.append(piece.name + (' (diverged)' if done.failed else ''))
  return found, missing


def keep(piece: Piece, *, again: bool = False) -> None:
  """Keep the curve of a piece if its directory has finished it.

  Args:
    piece: a piece with a file for its curve; otherwise nothing is kept.
    again: whether to replace a kept curve. Default: False.
  """
  summary = records.finished(piece.workdir, piece.num_steps)
  if piece.kept is None or summary is None:
    return
  if again or not piece.kept.exists():
    made_by = {name: summary[name] for name in MADE_BY if name in summary}
    own = curve(records.read_records(piece.workdir))
    kept = KeptCurve(summary['seconds'], made_by, own)
    kept_curves.write(piece.kept, piece.name, kept)


def _curve_of(piece: Piece) -> Curve:
  kept = kept_curves.read(piece.kept)
  return kept.curve if kept else curve(records.read_records(piece.workdir))


def curve(history: Sequence[records.Record]) -> Curve:
  """Return the values at the evaluations of a run, to six digits."""
  tested = [record for record in history if 'train_loss' in record]
  return {
    name: [float(f'{record[name]:.{_DIGITS}g}') for record in tested]
    for name in NAMES
  }


def hours(runs: Sequence[Piece]) -> float:
  """Return the hours that the finished pieces have taken, in all."""
  progress = [pieces.progress_of(piece) for piece in runs]
  return sum(x.seconds for x in progress if x.finished) / 3600


def paired(curves: Curves, label: str, other: str) -> list[tuple[Curve, Curve]]:
  """Return the curves of two labels, by the seeds that both have."""
  ours, theirs = curves.get(label, {}), curves.get(other, {})
  return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def accuracy(own: Curve, name: str = 'test_accuracy') -> float:
  """Return the accuracy after the last step, in %."""
  return 100 * own[name][-1]


def lost(own: Curve, reference: Curve) -> float:
  """Return the test accuracy that a curve loses to a reference, in points."""
  return accuracy(reference) - accuracy(own)


def relative(own: Curve, reference: Curve, of: str) -> float:
  """Return what a curve needs to losses of SSGD, relative to SSGD.

  It is the geometric mean over the lowest losses that SSGD has at the
  evaluations between the `TARGETS`; infinity if one of them is not reached. It
  is a lower bound for `reaches_late` curves.

  Args:
    own: the curve.
    reference: the curve of SSGD.
    of: what to compare, such as 'step' or 'modeled_seconds'.
  """
  targets = _targets(reference)
  ours, theirs = (
    [speed.when_reached(c[of], c['train_loss'], target) for target in targets]
    for c in (own, reference)
  )
  return float(np.exp(np.log(np.divide(ours, theirs)).mean()))


def reaches_late(own: Curve, reference: Curve) -> bool:
  """Return whether a curve reaches a target by the first drop of the rate only.

  Args:
    own: the curve.
    reference: the curve of SSGD.
  """
  steps, losses = np.array(own['step']), np.array(own['train_loss'])
  before = losses[steps <= steps[-1] / 2]
  least = _targets(reference).min()
  return bool(losses.min() <= least < before.min(initial=np.inf))


def any_late(curves: Curves, label: str, other: str) -> bool:
  """Return whether a curve of a label `reaches_late`, with any seed."""
  return any(reaches_late(*pair) for pair in paired(curves, label, other))


def _targets(reference: Curve) -> np.ndarray:
  losses = np.minimum.accumulate(reference['train_loss'])
  first = math.ceil(TARGETS[0] * len(losses))
  last = speed.count_within(TARGETS[1], len(losses))
  return np.unique(losses[min(first, last) - 1 : last])


def host_seconds(own: Curve, times: HostTimes) -> list[float]:
  """Return the seconds at each evaluation, by measured times of hosts."""
  steps, rounds = np.array(own['step']), np.array(own['rounds'])
  return [float(x) for x in times.step * steps + times.round * rounds]


def largest_statistics_gap(own: Curve, epochs: tuple[float, float]) -> float:
  """Return the largest loss of accuracy by mean batch statistics, points.

  Args:
    own: the curve.
    epochs: the first epoch, exclusive, and the last, inclusive.
  """
  at = np.array(own['epoch'])
  chosen = (at > epochs[0]) & (at <= epochs[1])
  estimated = np.array(own['test_accuracy'])[chosen]
  mean = np.array(own['test_accuracy_mean_statistics'])[chosen]
  return float(100 * (estimated - mean).max()) if chosen.any() else 0.0


def by_seed(curves: Curves, label: str) -> list[Curve]:
  """Return the curves of all seeds of a label."""
  return list(curves.get(label, {}).values())


def labels(curves: Curves, wanted: Sequence[str]) -> list[str]:
  """Return the labels that are measured, in the order of `wanted`."""
  return [label for label in wanted if label in curves]


def by_interval(of_labels: Mapping[str, T]) -> dict[str, T]:
  """Return the values of labels such as 'I = 4' in the order of I."""
  return dict(
    sorted(of_labels.items(), key=lambda x: int(x[0].removeprefix('I = ')))
  )
