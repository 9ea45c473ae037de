"""G6: DiLoCo and its kin on characters, by the bytes that they send."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.gallery import characters, comparing
from experiments.gallery import diloco_kin as kin
from experiments.gallery.entry import Entry
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles

LOOKS = {
  kin.SYNCHRONOUS: styles.method('ssgd'),
  kin.MUON: styles.Style(styles.HUES['red'], 'o'),
  kin.LARGE: styles.Style(styles.HUES['orange'], 's'),
  kin.LOCAL: styles.Style(styles.HUES['green'], 's'),
  kin.DILOCO: styles.method('diloco'),
  kin.MULOCO: styles.method('muloco'),
  kin.SPARSE: styles.Style(styles.HUES['pink'], '<'),
  kin.STREAMING: styles.method('streaming_diloco'),
}


def measure(setting: Setting) -> Outcome:
  """Train by every method, period, outer momentum and inner rate."""
  del setting
  runs = {
    label: (method, kin.NUM_REPLICAS) for label, method in kin.METHODS.items()
  }
  runs |= {_with(n): (kin.ONE_MOMENTUM, n) for n in kin.OTHER_REPLICAS}
  losses = {}
  for name, (method, num_replicas) in runs.items():
    losses[name] = kin.losses(method, num_replicas).tolist()
    print(f'  {name}', flush=True)
  data = {
    'losses': losses,  # by run: [periods, momenta, rates, seeds]
    'bytes': {name: kin.megabytes(*run) for name, run in runs.items()},
    'periods': {name: method.periods for name, (method, _) in runs.items()},
    'momenta': {name: method.momenta for name, (method, _) in runs.items()},
    'rates': {name: method.rates for name, (method, _) in runs.items()},
    'unigram': {'loss': characters.unigram_loss()},
  }
  return Outcome((), data, kin.SEEDS)


def _with(num_replicas: int) -> str:
  """Return the name of DiLoCo's runs with a number of replicas."""
  return (
    kin.DILOCO if num_replicas == kin.NUM_REPLICAS else f'N = {num_replicas}'
  )


class Best(NamedTuple):
  """The best settings of a run, by period.

  Attributes:
    losses: [periods, seeds], the losses.
    momenta: [periods], the outer momenta.
    rates: [periods], the inner rates.
    at_edge: [periods], 0 or 2 if the rate is the lowest or highest of the
      grid, else 1.
  """

  losses: np.ndarray
  momenta: np.ndarray
  rates: np.ndarray
  at_edge: np.ndarray


def best(data: Mapping[str, Any], run: str) -> Best:
  """Return the best settings, which have the lowest mean over the seeds."""
  losses = np.array(data['losses'][run])
  periods, momenta, rates, seeds = losses.shape
  flat = losses.reshape(periods, momenta * rates, seeds)
  places = flat.mean(axis=2).argmin(axis=1)
  momentum, rate = np.divmod(places, rates)
  return Best(
    flat[np.arange(periods), places],
    np.array(data['momenta'][run])[momentum],
    np.array(data['rates'][run])[rate],
    1 - (rate == 0) + (rate == rates - 1),
  )


def at_bytes(data: Mapping[str, Any], run: str, sent: float) -> np.ndarray:
  """Return the loss `[seeds]` of a run that sends a number of megabytes.

  Between two periods it is linear in the logarithm of the bytes.
  """
  order = np.argsort(data['bytes'][run])
  x = np.log(np.array(data['bytes'][run])[order])
  losses = best(data, run).losses[order].T
  return np.array([np.interp(np.log(sent), x, y) for y in losses])


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Compare the methods at equal steps and at equal bytes, and by N and H."""

  def end(run: str, period: int) -> np.ndarray:
    place = list(data['periods'][run]).index(period)
    losses: np.ndarray = best(data, run).losses[place]
    return losses

  def sent(run: str, period: int) -> float:
    place = list(data['periods'][run]).index(period)
    return float(data['bytes'][run][place])

  def than(ones: np.ndarray, others: np.ndarray) -> str:
    found = comparing.difference(ones, others, unit='nats')
    return found.higher_or_lower()

  def beside(run: str, period: int, other: str = kin.DILOCO) -> str:
    """Compare with another run at the bytes of the run."""
    own = end(run, period)
    return than(own, at_bytes(data, other, sent(run, period)))

  steps = kin.SOME
  local = ', '.join(
    f'{than(end(kin.LOCAL, h), end(kin.DILOCO, h))} at H = {h}'
    for h in kin.PERIODS
  )
  diloco, synchronous = end(kin.DILOCO, steps), end(kin.SYNCHRONOUS, 1)
  fewer = sent(kin.SYNCHRONOUS, 1) / sent(kin.DILOCO, steps)
  few, many = map(_with, kin.OTHER_REPLICAS)
  by_period = {h: than(end(many, h), end(few, h)) for h in kin.PERIODS}
  return (
    f'At H = {steps}, DiLoCo sends {comparing.shown(fewer)} times fewer bytes '
    f'than synchronous AdamW and ends at {diloco.mean():.2f} nats, '
    f'{than(diloco, synchronous)}; compared with DiLoCo, local AdamW, which is '
    f'DiLoCo with outer rate 1 and no momentum, is {local}, and MuLoCo '
    f'{than(end(kin.MULOCO, steps), diloco)}, while synchronous Muon is '
    f'{than(end(kin.MUON, 1), synchronous)} than synchronous AdamW.',
    'Compared with DiLoCo at equal bytes, streaming at 4 bits with H = '
    f'{kin.FEW} is {beside(kin.STREAMING, kin.FEW)}, SparseLoCo with H = '
    f'{kin.FEW} {beside(kin.SPARSE, kin.FEW)}, and synchronous AdamW with '
    f'{steps} times the batch {beside(kin.LARGE, steps)}; compared with local '
    'AdamW, the first two are '
    f'{beside(kin.STREAMING, kin.FEW, kin.LOCAL)} and '
    f'{beside(kin.SPARSE, kin.FEW, kin.LOCAL)}.',
    f'Compared with {few} and equally many examples in a step, DiLoCo with '
    f'{many} is {by_period[kin.FEW]} at H = {kin.FEW}, and '
    f'{by_period[kin.MANY]} at H = {kin.MANY}{_of_edges(data, (few, many))}.',
  )


def _of_edges(data: Mapping[str, Any], runs: Sequence[str]) -> str:
  """Return a remark on the best rates of runs at the edge of their grid."""
  at_edge = [run for run in runs if (best(data, run).at_edge != 1).any()]
  if not at_edge:
    return ''
  return (
    f' (some best rates of {" and of ".join(at_edge)} are at the edge of the '
    'grid)'
  )


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  found = {run: best(data, run) for run in data['losses']}
  edges = {
    f'{run} at H = {period}': int(edge)
    for run, periods in data['periods'].items()
    for period, edge in zip(periods, found[run].at_edge, strict=True)
  }
  grids_of: dict[str, list[str]] = {}
  for run, rates in data['rates'].items():
    grids_of.setdefault(', '.join(map(str, rates)), []).append(run)
  usual, *others = sorted(grids_of, key=lambda rates: -len(grids_of[rates]))
  exceptions = '; '.join(f'{", ".join(grids_of[x])}: {x}' for x in others)
  chosen = ', '.join(
    f'{momentum} at H = {period}'
    for momentum, period in zip(
      found[kin.DILOCO].momenta, data['periods'][kin.DILOCO], strict=True
    )
  )
  momenta = ', '.join(map(str, kin.MOMENTA))
  return (
    f'Transformer of one block of width {characters.WIDTH} on the characters '
    f"of Shakespeare's plays: sequences of {characters.LENGTH}, "
    f'{kin.GLOBAL_BATCH} in a step over all replicas, {kin.NUM_STEPS} steps, '
    f'N = {kin.NUM_REPLICAS} unless given. The rate has a warm-up and a half '
    f'cosine; weight decay {kin.WEIGHT_DECAY}. Each at the best of the rates '
    f'{usual} ({exceptions}). Loss: of the average at the end, on validation '
    'text, which also chooses the rates; the frequencies of characters give '
    f'{data["unigram"]["loss"]:.2f} nats. Bytes: sent by one replica in a run, '
    "by the library's ledger, in which compressed messages are gathered. Outer "
    f'rate {kin.OUTER_RATE} and momentum {kin.MOMENTA[0]}; DiLoCo with N = '
    f'{kin.NUM_REPLICAS} at the best of the momenta {momenta}: {chosen}, which '
    'are edges of this grid; the outer rate is not tuned. Muon: '
    f'steps with a root mean square of {kin.MUON_STEP} times the rate. '
    f'Streaming: {kin.FRAGMENTS} fragments, delay {kin.DELAY}, alpha '
    f'{kin.ALPHA}. SparseLoCo: outer rate 1 without momentum, at most 64 '
    'entries of a chunk (a tenth of all, because most leaves are small), 2 '
    'bits, decay 0.95. The loss between two numbers of bytes is interpolated. '
    'A hollow marker: the best rate is at the edge of the grid. '
    + comparing.edge_note(edges, 3)
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the loss by bytes, and DiLoCo's loss by period and replicas."""
  figure.set_size_inches(drawing.WIDTH, 4.5)
  left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
  for run, look in LOOKS.items():
    _draw_run(left, best(data, run), data['bytes'][run], look, run)
  left.set(
    xscale='log',
    xlabel='MB sent by a replica',
    ylabel='validation loss at the end, nats',
  )
  ascending = ', '.join(map(str, kin.PERIODS))
  left.set_title(f'N = {kin.NUM_REPLICAS}; from right to left: H = {ascending}')
  replicas = sorted((kin.NUM_REPLICAS, *kin.OTHER_REPLICAS))
  shades = styles.variants('diloco', replicas)
  for n in replicas:
    run, label = _with(n), f'DiLoCo, N = {n}'
    look = shades[n]._replace(marker='osD'[replicas.index(n)])
    _draw_run(right, best(data, run), data['periods'][run], look, label)
  right.set(xscale='log', xlabel='H', title='equally many examples in a step')
  right.set_xticks(kin.PERIODS, list(map(str, kin.PERIODS)))
  right.minorticks_off()
  right.legend()
  handles, labels = left.get_legend_handles_labels()
  drawing.legend_below(figure, dict(zip(labels, handles, strict=True)))


def _draw_run(
  axis: Axes, found: Best, x: Sequence[float], look: styles.Style, label: str
) -> None:
  """Draw a line through the periods, with hollow markers at a grid's edge."""
  axis.plot(x, found.losses.mean(axis=1), color=look.color, ls=look.linestyle)
  alone = look._replace(linestyle='none')
  hollow = found.at_edge != 1
  order = np.argsort(hollow)  # because a filled marker suits the legend
  for i in order:
    drawing.spread(
      axis,
      [x[i]],
      found.losses[[i]],
      alone,
      label=label if i == order[0] else '_',
      hollow=bool(hollow[i]),
    )


ENTRY = Entry(
  target=Target(
    name='g6_diloco',
    title='DiLoCo and its kin on characters, at equal bytes',
    paper='Douillard et al. 2023 and 2025 (arXiv 2311.08105, 2501.18512); '
    'Therien et al. 2025 (arXiv 2505.23725); Sarfi et al. 2025 '
    '(arXiv 2508.15706)',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)
