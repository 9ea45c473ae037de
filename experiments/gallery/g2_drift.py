"""G2: how far the replicas of each algorithm drift apart in a round."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.gallery import comparing, presets
from experiments.gallery.entry import Entry
from experiments.papers.target import Outcome, Setting, Target
from experiments.running.execution import experiment
from experiments.running.flags import run_config
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data.datasets import Dataset, load_dataset

SEEDS = (0, 1, 2)
NUM_STEPS, WINDOW = 600, 48
ALPHA = 0.5
# A smaller drift is rounding, in % of the norm of the average.
ROUNDING = 1e-3
AVERAGES = ('k_avg', 'pr_sgd', 'scaffold', 'hier_avg', 'diloco', 'easgd')
NEIGHBORS = ('d_psgd', 'diffusion', 'sgp', 'gradient_tracking', 'd2', 'k_gt')


def measure(setting: Setting) -> Outcome:
  """Train the preset of every algorithm on unlike data."""
  dataset = load_dataset('digits', setting.data_dir)
  drifts: dict[str, list[list[float]]] = {}
  optimizers = {}
  for algorithm, path in presets.on_digits().items():
    runs = [
      presets.make(
        path, partition='dirichlet', dirichlet_alpha=ALPHA, seed=seed
      )
      for seed in SEEDS
    ]
    drifts[algorithm] = [drift(run, dataset) for run in runs]
    optimizers[algorithm] = _optimizer(runs[0])
    jax.clear_caches()  # because no algorithm has the program of another
  data = {'drifts': drifts, 'optimizers': optimizers, 'steps': NUM_STEPS}
  return Outcome((), data, SEEDS)


def _optimizer(run: run_config.RunConfig) -> str:
  momentum = f', momentum {run.momentum}' if run.momentum else ''
  return f'{run.optimizer} {run.learning_rate}{momentum}'


def drift(run: run_config.RunConfig, dataset: Dataset) -> list[float]:
  """Return the drift after each of the last steps of a run.

  The drift is the root of the mean squared distance of the replicas from their
  average, in % of the norm of the average.
  """
  parts = experiment.assemble(run, dataset, 1, pr.ledger.NETWORK)
  state = parts.first_state()
  found = []
  for step in range(NUM_STEPS):
    state, _ = parts.trainer.run(state, parts.data, 1)
    if step >= NUM_STEPS - WINDOW:
      found.append(_spread(state.params))
  return [float(f'{100 * float(x):.4g}') for x in jax.device_get(found)]


@jax.jit
def _spread(params: Any) -> jax.Array:
  """Return the drift of `[N, ...]` relative to the norm of the average."""
  leaves = [x.reshape(len(x), -1) for x in jax.tree.leaves(params)]
  x = jnp.concatenate(leaves, axis=1)
  mean = x.mean(axis=0)
  square = jnp.square(x - mean).sum(axis=1).mean()
  return jnp.sqrt(square / jnp.square(mean).sum())


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Count the algorithms by their drift, and compare some peaks."""
  drifts = {name: np.array(x) for name, x in data['drifts'].items()}
  never = [n for n, x in drifts.items() if x.max() < ROUNDING]
  back = [
    n
    for n, x in drifts.items()
    if n not in never and x.min(axis=1).max() < ROUNDING
  ]
  peaks = {name: x.max(axis=1) for name, x in drifts.items()}

  def over(one: str, other: str) -> str:
    return str(comparing.ratio(peaks[one], peaks[other]))

  means = {name: float(x.mean()) for name, x in peaks.items()}
  most = max(means.values())
  widest = [name for name, mean in means.items() if mean == most]
  drift = 'drift' if len(widest) > 1 else 'drifts'
  return (
    f'Of {len(drifts)} algorithms, {len(never)} keep the replicas equal, '
    f'{len(back)} make them equal at the end of a round, and '
    f'{len(drifts) - len(never) - len(back)} never do; {" and ".join(widest)} '
    f'{drift} most, up to {comparing.shown(most)}% of the norm of the average.',
    f'Local SGD with I = 16 drifts up to {comparing.shown(means["k_avg"])}%, '
    f'{over("k_avg", "one_shot_averaging")} the drift '
    'of replicas that are never averaged.',
    f'D-PSGD on a ring drifts {over("d_psgd", "k_avg")} as far as local SGD at '
    f'its peak; quasi-global momentum drifts {over("qg_dsgdm", "d_psgd")} as '
    f'far as D-PSGD, and CHOCO-SGD {over("choco_sgd", "d_psgd")}.',
  )


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  by_optimizer: dict[str, list[str]] = {}
  for name, optimizer in data['optimizers'].items():
    by_optimizer.setdefault(optimizer, []).append(name)
  usual, *others = sorted(by_optimizer, key=lambda x: -len(by_optimizer[x]))
  exceptions = '; '.join(f'{", ".join(by_optimizer[x])}: {x}' for x in others)
  return (
    'The preset of each algorithm on the digits (MLP 64-128-10, 8 replicas '
    f'with batches of 16), but with unlike data (Dirichlet, alpha = {ALPHA}), '
    f'in the last {WINDOW} of {data["steps"]} steps. Drift: root of the mean '
    'squared distance from the average, in % of the norm of the average, after '
    'the whole step: where replicas mix before their gradient (D-PSGD, PR-SGD) '
    'it is read after the gradient, and where they mix last (qg_dsgdm, '
    'choco_sgd, k_avg) after the mixing. So ratios between the two kinds are '
    'partly of the order of the parts of a step, and algorithms that average '
    'before their gradient are among those whose replicas are never equal. '
    f'The optimizer is {usual}; exceptions are {exceptions}. The drift grows '
    'with the rate, so the ratios are of algorithms with equal optimizers.'
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the drift by step for some algorithms, and its range for all."""
  figure.set_size_inches(drawing.WIDTH, 9.5)
  drifts = {name: np.array(x) for name, x in data['drifts'].items()}
  grid = figure.add_gridspec(2, 2)
  steps = data['steps'] - np.arange(WINDOW)[::-1]
  titles = 'averages of all replicas', 'messages to neighbors'
  for i, names in enumerate((AVERAGES, NEIGHBORS)):
    axis = figure.add_subplot(grid[i, 0])
    looks = styles.looks({name: name for name in names})
    for name in names:
      drawing.seeds(axis, steps, drifts[name], looks[name], label=name)
    axis.set(yscale='log', title=titles[i], ylabel='drift, % of the average')
    axis.set_ylim(0.01, 60)  # with room for the legend
    axis.legend(loc='upper left', ncols=3)
    axis.set_xlabel('step')
  _draw_ranges(figure.add_subplot(grid[:, 1]), drifts)


def _draw_ranges(axis: Axes, drifts: Mapping[str, np.ndarray]) -> None:
  """Draw lowest, mean and highest drift, as means over the seeds."""
  order = sorted(drifts, key=lambda name: drifts[name].max(axis=1).mean())
  places = np.arange(len(order))
  for place, name in enumerate(order):
    x = drifts[name]
    ends = x.min(axis=1).mean(), x.max(axis=1).mean()
    axis.plot(ends, [place] * 2, color='0.6', lw=2.5)
  means = [drifts[name].mean() for name in order]
  axis.plot(means, places, 'o', color=styles.HUES['blue'], ms=3.5)
  note = drawing.zero_and_log(axis, 'x', 0.01)
  axis.set_yticks(places, order, fontsize=drawing.LEAST_TEXT)
  axis.set_ylim(-0.8, len(order) - 0.2)
  axis.set(xlabel=f'drift, % of the average ({note})')
  axis.set_title('lowest, mean and highest in these steps')


ENTRY = Entry(
  target=Target(
    name='g2_drift',
    title='How far do replicas drift apart in a round?',
    paper='the preset of each algorithm',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)
