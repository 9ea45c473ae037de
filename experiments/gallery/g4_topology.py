"""G4: the bias of decentralized methods on unlike data, by topology."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import networkx as nx
import numpy as np
import optax

from experiments.gallery import comparing
from experiments.gallery.entry import Entry
from experiments.papers.simulation import simulate
from experiments.papers.target import Outcome, Setting, Target
from experiments.tools import drawing, styles
import prsgd_jax as pr
from prsgd_jax.data import samplers
from prsgd_jax.data.datasets import Dataset, load_dataset
from prsgd_jax.mixing.graphs.fixed import metropolis_hastings

NUM_REPLICAS, COMPONENTS = 16, 16
ALPHAS = (0.1, 1.0, 100.0)
SEEDS = (0, 1, 2, 3)
RATES = (0.01, 0.03, 0.1)
NUM_STEPS = 2500
GRAPHS: dict[str, Callable[[], nx.Graph]] = {
  'star': lambda: nx.star_graph(NUM_REPLICAS - 1),
  'ring': lambda: nx.cycle_graph(NUM_REPLICAS),
  'torus': lambda: nx.grid_2d_graph(4, 4, periodic=True),
  'complete': lambda: nx.complete_graph(NUM_REPLICAS),
}
METHODS: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'D-PSGD': pr.d_psgd,
  'diffusion': pr.diffusion,
  'D²': pr.d2,
  'gradient tracking': pr.gradient_tracking,
}
BIASED = ('D-PSGD', 'diffusion')
EXACT = 'D²'
DOUBLE = 'D² in float64'
LOOKS = {
  'D-PSGD': styles.method('d_psgd'),
  'diffusion': styles.method('diffusion'),
  EXACT: styles.method('d2'),
  DOUBLE: styles.method('d2')._replace(linestyle='--', marker='o'),
  'gradient tracking': styles.method('gradient_tracking'),
}
# The settings of the sentences.
UNLIKE, ALIKE, SLOW, FAST = 0.1, 100.0, 0.01, 0.1


def measure(setting: Setting) -> Outcome:
  """Run every method on every graph, with exact gradients, to its end."""
  dataset = load_dataset('digits', setting.data_dir)
  # All problems are leaves of one program: [problems, replicas, D, ...].
  quadratics = [
    quadratic(dataset, alpha, seed) for alpha in ALPHAS for seed in SEEDS
  ]
  h, g = (np.stack(x) for x in zip(*quadratics, strict=True))
  shape = (len(RATES), len(ALPHAS), len(SEEDS))
  measured: dict[str, Any] = {name: {} for name in LOOKS}
  averages: dict[str, Any] = {name: {} for name in LOOKS}
  solved: dict[str, Any] = {name: {} for name in BIASED}
  for graph in GRAPHS:
    w = weights(graph)
    for name in LOOKS:
      with jax.enable_x64(name == DOUBLE):
        make = METHODS.get(name, METHODS[EXACT])
        found = _biases(make, lazy(w) if make is pr.d2 else w, h, g)
      of_replicas, of_average = found.reshape(2, *shape).tolist()
      measured[name][graph], averages[name][graph] = of_replicas, of_average
    for name in BIASED:
      found = np.array(
        [
          [bias(fixed_point(name, w, rate, *one), *one) for one in quadratics]
          for rate in RATES
        ]
      )
      solved[name][graph] = found.reshape(shape).tolist()
  data = {
    'measured': measured,  # by method and graph: [rates, alphas, seeds]
    'averages': averages,  # of the average, by the same keys
    'solved': solved,
    'rates': RATES,
    'alphas': ALPHAS,
    'gaps': {graph: spectral_gap(weights(graph)) for graph in GRAPHS},
  }
  return Outcome((), data, SEEDS)


def quadratic(
  dataset: Dataset, alpha: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Return H `[N, D, D]` and G `[N, D, classes]` of least squares per replica.

  The features are whitened principal components of the images and a constant,
  and the targets are the classes. The gradient of replica i is H_i x - G_i.
  """
  labels = dataset.train['label']
  images = dataset.train['image'].reshape(len(labels), -1).astype(float)
  images -= images.mean(axis=0)
  u, _, _ = np.linalg.svd(images, full_matrices=False)
  ones = np.ones((len(labels), 1))
  features = np.hstack([u[:, :COMPONENTS] * len(labels) ** 0.5, ones])
  targets = np.eye(dataset.num_classes)[labels]
  shards = samplers.dirichlet_shards(
    labels, NUM_REPLICAS, alpha=alpha, seed=seed
  )
  h = [features[rows].T @ features[rows] / len(rows) for rows in shards]
  g = [features[rows].T @ targets[rows] / len(rows) for rows in shards]
  return np.array(h), np.array(g)


def weights(graph: str) -> np.ndarray:
  """Return W by Metropolis and Hastings."""
  made = nx.convert_node_labels_to_integers(GRAPHS[graph]())
  return metropolis_hastings(made)


def lazy(w: np.ndarray) -> np.ndarray:
  """Return (I + W) / 2, without negative eigenvalues, which D^2 requires."""
  return (np.eye(len(w)) + w) / 2


def spectral_gap(w: np.ndarray) -> float:
  """Return 1 minus the second largest eigenvalue of W."""
  return float(1 - np.sort(np.linalg.eigvalsh(w))[-2])


def _biases(
  make: Callable[..., pr.base.ReplicaTransformation],
  w: np.ndarray,
  h: np.ndarray,
  g: np.ndarray,
) -> np.ndarray:
  """Return the bias of the replicas and of their average after the last step.

  Returns:
    float[2, rates, problems].
  """
  mixing = pr.graphs.graph(w)
  h_all, g_all = jnp.asarray(h), jnp.asarray(g)

  def loss(x: Any, step: Any, replica: Any, key: Any) -> jax.Array:
    del step, key
    return (
      jnp.einsum('pdc,pde,pec->', x, h_all[:, replica], x) / 2
      - (x * g_all[:, replica]).sum()
    )

  found = simulate(
    lambda rate: make(optax.sgd(rate), mixing=mixing),
    RATES,
    (0,),  # because nothing is random but the shards
    loss_fn=loss,
    start=jnp.zeros((len(h), *g.shape[2:])),
    num_replicas=NUM_REPLICAS,
    num_steps=NUM_STEPS,
    observe=lambda x: x,
    every=NUM_STEPS,
  )[:, 0, 0]  # [rates, N, problems, D, classes]
  points = np.moveaxis(found.astype(float), 2, 1)
  averages = points.mean(axis=2, keepdims=True)
  return np.array(
    [
      [
        [bias(x, *one) for x, *one in zip(of_rate, h, g, strict=True)]
        for of_rate in of
      ]
      for of in (points, averages)
    ]
  )


def fixed_point(
  name: str, w: np.ndarray, rate: float, h: np.ndarray, g: np.ndarray
) -> np.ndarray:
  """Solve for the fixed point `[N, D, classes]` of a biased method.

  D-PSGD: x = W x - rate (H x - G). Diffusion: x = W (x - rate (H x - G)).
  """
  n, d, classes = g.shape
  mix = np.kron(w, np.eye(d))
  hessian = np.zeros((n, d, n, d))
  hessian[np.arange(n), :, np.arange(n)] = h
  step = mix if name == 'diffusion' else np.eye(n * d)
  system = np.eye(n * d) - mix + rate * step @ hessian.reshape(n * d, n * d)
  right = rate * step @ g.reshape(n * d, classes)
  return np.linalg.solve(system, right).reshape(g.shape)


def bias(x: np.ndarray, h: np.ndarray, g: np.ndarray) -> float:
  """Return the distance of x `[n, D, classes]` from the optimum.

  It is the root of the mean square over n, relative to the optimum.
  """
  best = np.linalg.solve(h.mean(axis=0), g.mean(axis=0))
  square = ((x - best) ** 2).sum(axis=(1, 2)).mean()
  return float((square / (best**2).sum()) ** 0.5)


def _at(
  data: Mapping[str, Any], of: str, graph: str, alpha: float, rate: float
) -> np.ndarray:
  """Return the biases `[seeds]` of D-PSGD, 'measured' or of its 'averages'."""
  place = data['rates'].index(rate), data['alphas'].index(alpha)
  return np.array(data[of]['D-PSGD'][graph])[place]


def sentences(data: Mapping[str, Any]) -> tuple[str, str, str]:
  """Compare the bias by data, graph and rate, and with the solved one."""

  def ring(of: str) -> np.ndarray:
    return _at(data, of, 'ring', UNLIKE, FAST)

  def over_ring(
    of: str, *, graph: str = 'ring', alpha: float = UNLIKE, rate: float = FAST
  ) -> comparing.Ratio:
    return comparing.ratio(_at(data, of, graph, alpha, rate), ring(of))

  worst = max(
    float(np.abs(np.array(seen) - data['solved'][name][graph]).max())
    for name in BIASED
    for graph, seen in data['measured'][name].items()
  )
  most = {
    name: comparing.shown(100 * max(float(np.max(x)) for x in found.values()))
    for name, found in data['measured'].items()
  }
  far, middle = (
    comparing.shown(100 * ring(of).mean()) for of in ('measured', 'averages')
  )
  return (
    f'On a ring with unlike data (alpha = {UNLIKE:g}) and rate {FAST:g}, the '
    f'replicas of D-PSGD end {far}% from the optimum, and their average '
    f'{middle}%; every bias of D-PSGD and diffusion is within '
    f'{comparing.shown(100 * worst)} points of the solved fixed point.',
    f'With like data (alpha = {ALIKE:g}), the bias of the replicas is '
    f'{over_ring("measured", alpha=ALIKE)} and the bias of their average '
    f'{over_ring("averages", alpha=ALIKE)} as large; for the replicas, it is '
    f'{over_ring("measured", rate=SLOW)} as large at rate {SLOW:g} and '
    f'{over_ring("measured", graph="torus")} on a torus.',
    'For every graph, rate and alpha, gradient tracking ends at most '
    f'{most["gradient tracking"]}% from the optimum after {NUM_STEPS} steps; '
    f'D² ends at most {most[EXACT]}% from it in float32, because its '
    f'correction accumulates rounding errors, and at most {most[DOUBLE]}% in '
    'float64.',
  )


def setting_of(data: Mapping[str, Any]) -> str:
  """Describe the runs."""
  gaps = ', '.join(
    f'{graph} {comparing.shown(gap)}' for graph, gap in data['gaps'].items()
  )
  return (
    f'Least squares for the classes of the digits on {COMPONENTS} whitened '
    f'principal components, {NUM_REPLICAS} replicas, exact gradients, '
    f'{NUM_STEPS} steps. A seed draws the classes of each replica. W has '
    f'Metropolis-Hastings weights; spectral gaps: {gaps}. D² has '
    'half of W and half the identity, because it requires positive '
    'eigenvalues. The distance from the optimum is the root of the mean square '
    'over the replicas, in % of the norm of the optimum.'
  )


def draw(data: Mapping[str, Any], figure: Figure) -> None:
  """Draw the bias by rate, a row for each end of alpha, a column per graph."""
  figure.set_size_inches(drawing.WIDTH, 5.5)
  graphs: Sequence[str] = list(data['gaps'])
  panels = figure.subplots(2, len(graphs), sharex=True, sharey=True)
  for row, alpha in zip(panels, (UNLIKE, ALIKE), strict=True):
    place = data['alphas'].index(alpha)
    for axis, graph in zip(row, graphs, strict=True):
      for name, by_graph in data['measured'].items():
        seen = 100 * np.array(by_graph[graph])[:, place]
        drawing.seeds(axis, data['rates'], seen.T, LOOKS[name], label=name)
      for i, name in enumerate(BIASED):
        solved = 100 * np.array(data['solved'][name][graph])[:, place]
        label = 'solved fixed points' if i == 0 else '_'
        mean = solved.mean(axis=1)
        axis.plot(data['rates'], mean, 'k+', ms=9, label=label)
      axis.set(xscale='log', yscale='log', title=f'{graph}, alpha = {alpha:g}')
      axis.set_xticks(data['rates'], [f'{rate:g}' for rate in data['rates']])
      axis.minorticks_off()
    row[0].set_ylabel('distance from the optimum, %')
  for axis in panels[-1]:
    axis.set_xlabel('learning rate')
  drawing.legend_below(figure)


ENTRY = Entry(
  target=Target(
    name='g4_topology',
    title='Topology and unlike data: the bias of decentralized methods',
    paper='Lian et al. 2017 (arXiv 1705.09056); Tang et al. 2018 '
    '(arXiv 1803.07068)',
    measure=measure,
    draw=draw,
  ),
  setting=setting_of,
  sentences=sentences,
)
