"""Train short pilot runs, and measure the loss of the averaged model.

A pilot is the run that train.py would start with the same flags and seed. It
is evaluated every few steps on training examples, and ends as soon as it has
answered the question. A directory keeps one file for each pilot, so that a
repeated command trains only what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.running.execution import experiment
from experiments.running.execution.parts import Parts
from experiments.running.flags.run_config import RunConfig
from experiments.running.records import differences, json_files, writing
import prsgd_jax as pr
from prsgd_jax.base import Decided
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.engine import processes
from prsgd_jax.engine.run_state import State

# Training examples on which the averaged model is evaluated, at most.
EXAMPLES = 2000
# Repetitions of a timed dispatch, of which the median counts.
REPEATS = 15
# Length of the run whose step is timed, so long that its only average, the
# last one, is never reached.
_ENDLESS = 2**20


class Point(NamedTuple):
  """The averaged model after some steps.

  Attributes:
    step: number of steps done.
    loss: mean loss over the evaluated training examples.
    decided: rounds so far of each stage with data-dependent communication.
    seconds: measured time of the training so far; of several processes, the
      slowest counts. The first dispatch includes compilation.
  """

  step: int
  loss: float
  decided: tuple[int, ...]
  seconds: float


class Pilot(NamedTuple):
  """What was measured of one run with one seed.

  Attributes:
    points: the evaluations, in order of their steps.
    diverged: whether the loss was not finite after the last point.
  """

  points: tuple[Point, ...]
  diverged: bool = False


# Points so far -> whether the pilot may end.
Enough = Callable[[Sequence[Point]], bool]


def train(
  parts: Parts, examples: Any, *, every: int, is_enough: Enough
) -> Pilot:
  """Train from the first step until the points are enough.

  With several processes, each of them must call it.

  Args:
    parts: parts of the run.
    examples: training examples `[n, ...]` for the evaluation.
    every: steps between two points, >= 1.
    is_enough: function of the points so far that ends the pilot.

  Raises:
    ValueError: if the model has no value `loss`.
  """
  num_steps = parts.plan.num_steps
  state = parts.first_state()
  points: list[Point] = []
  seconds = 0.0
  while state.step < num_steps and not is_enough(points):
    size = min(every, num_steps - state.step)
    state, lasted, finite = _dispatch(parts, state, size)
    seconds += lasted
    loss = _loss(parts, state, examples) if finite else math.nan
    if not math.isfinite(loss):
      return Pilot(tuple(points), diverged=True)
    points.append(Point(state.step, loss, _decided(state), seconds))
  return Pilot(tuple(points))


def _dispatch(
  parts: Parts, state: State, size: int
) -> tuple[State, float, bool]:
  """Return the new state, the seconds, and whether all losses are finite."""
  jax.block_until_ready(state.on_devices)
  processes.barrier('the steps of a pilot')
  begun = time.perf_counter()
  state, metrics = parts.trainer.run(state, parts.data, size)
  jax.block_until_ready((state.on_devices, metrics))
  lasted = time.perf_counter() - begun
  finite = bool(np.isfinite(np.asarray(metrics['loss'])).all())
  return state, max(processes.collect('seconds', lasted)), finite


def _loss(parts: Parts, state: State, examples: Any) -> float:
  refresh = parts.data if parts.reestimate else None
  means = parts.trainer.evaluate(state, examples, reestimate=refresh)
  if 'loss' not in means:
    raise ValueError(
      f'--plan requires a model whose evaluation has the value loss, got '
      f'{", ".join(means)}'
    )
  return means['loss']


def _decided(state: State) -> tuple[int, ...]:
  def is_decided(node: Any) -> bool:
    return isinstance(node, Decided)

  nodes = jax.tree.leaves(state.on_devices.algorithm_state, is_leaf=is_decided)
  return tuple(
    int(np.ravel(state.mesh.gather(node.rounds))[0])
    for node in filter(is_decided, nodes)
  )


def training_examples(dataset: Dataset) -> Any:
  """Return training examples to evaluate on, evenly spread over all.

  Args:
    dataset: data of the runs.
  """
  n = dataset.num_examples
  rows = np.unique(np.linspace(0, n - 1, min(n, EXAMPLES)).astype(int))
  if dataset.is_streamed:
    data = pr.pipeline(dataset.train, batch_size=1)
    return data.read(rows, np.zeros((len(rows), 3), int))
  return jax.tree.map(lambda x: x[rows], dataset.train)


def size(examples: Any) -> int:
  """Return the number of examples in a tree of arrays `[n, ...]`."""
  return len(jax.tree.leaves(examples)[0])


def step_timer(
  config: RunConfig, dataset: Dataset, *, every: int
) -> Callable[[], float]:
  """Return a function that measures the seconds of a step.

  A step is a gradient and an update without communication. Every process trains
  one replica on one device, all at the same time; the slowest process counts.
  Only the model, the batch and the optimizer matter.

  Args:
    config: one of the runs.
    dataset: data of the runs.
    every: steps of a dispatch, as in the pilots.
  """
  alone = dataclasses.replace(
    config,
    algorithm='one_shot_averaging',
    options={},
    num_replicas=processes.count(),
    partition='shared',
    dirichlet_alpha=None,
    num_steps=_ENDLESS,
  )
  parts = experiment.assemble(
    alone, dataset, processes.count(), pr.ledger.NETWORK
  )
  state, _, _ = _dispatch(parts, parts.first_state(), every)  # which compiles

  def measure() -> float:
    nonlocal state
    times = []
    for _ in range(REPEATS):
      state, lasted, _ = _dispatch(parts, state, every)
      times.append(lasted / every)
    return float(np.median(times))

  return measure


# Texts in a file for False and True of `Pilot.diverged`.
_LOSSES = ('finite', 'not finite')
_FORM = json_files.object_of(
  {
    'description': json_files.object_of({}),
    'points': json_files.list_of(
      json_files.object_of(
        {
          'step': json_files.count,
          'loss': json_files.number,
          'decided': json_files.list_of(json_files.count),
          'seconds': json_files.number,
        }
      )
    ),
    'losses': json_files.one_of(*_LOSSES),
  }
)


def read_or_train(
  path: pathlib.Path | None,
  parts: Parts,
  examples: Any,
  *,
  every: int,
  is_enough: Enough,
) -> Pilot:
  """Return the pilot in a file if it is enough, else train and write it.

  With several processes, each of them must call it; process 0 writes the file.

  Args:
    path: file of the pilot, in an existing directory; None for no file.
    parts: parts of the run.
    examples: training examples `[n, ...]` for the evaluation.
    every: steps between two points, >= 1.
    is_enough: function of the points so far that ends the pilot.

  Raises:
    ValueError: if the file has the pilot of a different run.
    DamagedFile: if the file cannot be read.
  """
  description = {
    **parts.description,
    'num_steps': parts.plan.num_steps,
    'pilot_every': every,
  }
  if path is not None:
    saved = _read(path, description)
    if saved is not None and _is_final(saved, parts, is_enough):
      return saved
  pilot = train(parts, examples, every=every, is_enough=is_enough)
  if path is not None and processes.is_first():
    points = [point._asdict() for point in pilot.points]
    content = {
      'description': description,
      'points': points,
      'losses': _LOSSES[pilot.diverged],
    }
    writing.write_text(path, writing.to_json(content))
  return pilot


def _read(path: pathlib.Path, description: Mapping[str, Any]) -> Pilot | None:
  """Return the pilot in a file, None if the file does not exist."""
  saved = json_files.read(path, _FORM)
  if saved is None:
    return None
  asked = json.loads(json.dumps(description))
  differences.check(path, saved['description'], asked)
  points = tuple(
    Point(p['step'], p['loss'], tuple(p['decided']), p['seconds'])
    for p in saved['points']
  )
  return Pilot(points, saved['losses'] == _LOSSES[True])


def _is_final(pilot: Pilot, parts: Parts, is_enough: Enough) -> bool:
  """Whether more steps would not add anything."""
  steps = pilot.points[-1].step if pilot.points else 0
  ended = steps == parts.plan.num_steps or pilot.diverged
  return ended or is_enough(pilot.points)
