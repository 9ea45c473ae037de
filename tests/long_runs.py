"""Runs of 200,000 steps: memory, and work per record, must not grow.

  make long_runs

Not part of the tests: it takes minutes. Memory is read at every record. Work is
counted in steps whose cost the ledger asks for, because times vary; the times
are printed. At the end each run is resumed for one more record, whose start
must not count the steps before.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.execution import objects
from experiments.running.logs import loggers
import prsgd_jax as pr
from prsgd_jax.ledger.counting import SPAN
from prsgd_jax.models.classification import Task

STEPS = int(os.environ.get('STEPS', 200_000))
LOG_EVERY = STEPS // 200
N = 8
MEGABYTES = 4  # that the process may grow by after a fifth of the run
SGD = optax.sgd(1e-3)
ALGORITHMS = {
  'pr_sgd': pr.pr_sgd(SGD, period=4),
  'per_worker_intervals': pr.pr_sgd_heterogeneous(
    SGD, local_steps=(1, 1, 1, 1, 2, 2, 4, 4)
  ),
  'random_gossip': pr.d_psgd(SGD, mixing=pr.graphs.random_matching()),
  'fedavg': pr.fedavg(SGD, period=4, participation=0.5),
}
LINE = Task(
  init=lambda key, batch: (jnp.zeros(4), {}),
  loss_fn=lambda w, state, batch, key: (
    jnp.square(batch['x'] @ w - batch['y']).mean(),
    (state, {}),
  ),
  eval_fn=None,
)


def main() -> None:
  with tempfile.TemporaryDirectory() as root:
    wrong = [
      name for name in ALGORITHMS if not is_bounded(pathlib.Path(root), name)
    ]
  if wrong:
    sys.exit(f'memory or work grew with the run: {", ".join(wrong)}')


def is_bounded(root: pathlib.Path, name: str) -> bool:
  """Trains, resumes, prints what it took, and returns whether it is bounded."""
  asked = 0
  algorithm = ALGORITHMS[name]

  def cost(shapes, num_replicas, steps):
    nonlocal asked
    asked += len(steps)
    return algorithm.cost(shapes, num_replicas, steps)

  taken: list[tuple[float, float, int]] = []  # megabytes, seconds, steps asked

  def measure(run: loggers.Run) -> loggers.Logger:
    del run
    return loggers.Logger(
      lambda record: taken.append((resident(), time.monotonic(), asked))
    )

  counted = algorithm._replace(cost=cost)
  train(root / name, counted, STEPS, measure)
  memory, seconds, work = zip(*taken, strict=True)
  fifth = len(taken) // 5
  growth = memory[-1] - memory[fifth]
  most = int(np.diff(work).max())
  each = np.diff(seconds) * 1e3 / LOG_EVERY
  early, late = (
    statistics.median(each[:fifth]),
    statistics.median(each[-fifth:]),
  )
  asked = 0
  begun = time.monotonic()
  train(root / name, counted, STEPS + LOG_EVERY, measure)
  again = time.monotonic() - begun
  print(
    f'{name}: {memory[fifth]:.0f} MB, {growth:+.1f} MB until the end; '
    f'{early:.3f} ms a step in the first fifth, {late:.3f} in the last; the '
    f'ledger asked for {most} steps per record at most, {asked} when resumed '
    f'({again:.1f} s)'
  )
  # A record may enter one span after another; a meter begins with the first.
  return (
    growth <= MEGABYTES
    and most <= LOG_EVERY + 2 * SPAN
    and asked <= LOG_EVERY + 3 * SPAN
  )


def train(workdir, algorithm, num_steps, measure) -> None:
  x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
  objects.run(
    algorithm=algorithm, model=LINE, data={'x': x, 'y': x.sum(axis=1)},
    num_replicas=N, num_devices=1, num_steps=num_steps, batch_size=4,
    workdir=workdir, log_every=LOG_EVERY, eval_every=LOG_EVERY,
    checkpoint_every=20 * LOG_EVERY, progress=False, loggers=[measure],
    network=pr.ledger.Network(jitter=0.3),
  )  # fmt: skip


def resident() -> float:
  """Return the resident memory of this process in megabytes."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


if __name__ == '__main__':
  main()
