"""Contestants of `benchmark.py`, and the engine as one."""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.tools import benchmark_cases
from experiments.tools.benchmark_cases import BATCH_SIZE, PERIOD, Case
from experiments.tools.png_examples import PngExamples
import prsgd_jax as pr
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.engine.trainer import Trainer

ENGINE, HAND, PEER, STREAMED = 'engine', 'hand', 'peer', 'streamed'


class Turn(NamedTuple):
  """What a contestant did in a turn.

  Attributes:
    seconds: seconds that the steps took.
    loss: loss of the last step, the mean over the replicas.
  """

  seconds: float
  loss: float


class Contestant(NamedTuple):
  """A loop that keeps the state of its replicas between turns.

  Attributes:
    label: unique name in tables.
    kind: `ENGINE`, `HAND`, `PEER` or `STREAMED`.
    unit: steps of which each turn takes a multiple.
    run: `steps -> Turn`.
    average: returns the averaged parameters by their flat names.
    processes: numbers of processes that it has besides this one.
    waited: returns the seconds in which its devices had no batches.
  """

  label: str
  kind: str
  unit: int
  run: Callable[[int], Turn]
  average: Callable[[], dict[str, np.ndarray]]
  processes: tuple[int, ...] = ()
  waited: Callable[[], float] = lambda: 0.0


def make_trainer(case: Case, num_devices: int) -> Trainer:
  """Return the trainer of local SGD."""
  return pr.trainer(
    pr.local_sgd(benchmark_cases.optimizer(), period=PERIOD),
    benchmark_cases.task(case).loss_fn,
    num_replicas=case.num_replicas,
    num_devices=num_devices,
  )


def engine(case: Case, num_devices: int) -> Contestant:
  """Return the engine on resident data."""
  data = benchmark_cases.resident(case)
  label = f'engine, {devices_label(num_devices)}'
  return of_trainer(label, ENGINE, case, make_trainer(case, num_devices), data)


def from_stream(case: Case, num_devices: int) -> list[Contestant]:
  """Return the engine on streamed data, and on the same data resident.

  Images of three channels are PNG files, which the stream decodes. Both
  normalize them on the devices.
  """
  transform = benchmark_cases.normalize(case)
  streamed, resident = (make_trainer(case, num_devices) for _ in range(2))
  data = pr.shared(case.data, batch_size=BATCH_SIZE, transform=transform)
  stream = _stream(case)
  return [
    of_trainer('streamed', STREAMED, case, streamed, stream),
    of_trainer('resident', ENGINE, case, resident, data),
  ]


def _stream(case: Case) -> Pipeline:
  source: Any = case.data
  if case.data['image'].shape[-1] == 3:
    source = PngExamples(case.data)
  # One dispatch in advance, because that is read in the turn of the other.
  examples = case.dispatch * case.num_replicas * BATCH_SIZE
  return pr.pipeline(
    source,
    batch_size=BATCH_SIZE,
    transform=benchmark_cases.normalize(case),
    buffer_bytes=examples * (case.data['image'][0].nbytes + 4),
  )


def of_trainer(
  label: str, kind: str, case: Case, trainer: Trainer, data: Any
) -> Contestant:
  """Return the engine with any algorithm.

  Args:
    label: unique name in tables.
    kind: `ENGINE` or `STREAMED`.
    case: the case, with its initial point and the steps of a dispatch.
    trainer: the trainer of the algorithm.
    data: resident or streamed data.
  """
  state = trainer.init(*benchmark_cases.initial(case))

  def run(steps: int) -> Turn:
    nonlocal state
    begun = time.perf_counter()
    for _ in range(steps // case.dispatch):
      state, metrics = trainer.run(state, data, case.dispatch)
    jax.block_until_ready((state.on_devices, metrics))
    lasted = time.perf_counter() - begun
    return Turn(lasted, float(np.asarray(metrics['loss'])[-1].mean()))

  return Contestant(
    label,
    kind,
    case.dispatch,
    run,
    lambda: benchmark_cases.flat(trainer.average(state)[0]),
    waited=trainer.waited,
  )


def devices_label(number: int) -> str:
  """Return words for a number of devices."""
  return '1 device' if number == 1 else f'{number} devices'
