"""Measure the contestants of a benchmark in turn."""

from collections.abc import Sequence
import os
import time
from typing import Any

import numpy as np

from experiments.running.records import records
from experiments.tools import benchmark_cases, disturbances
from experiments.tools.benchmark_cases import Case
from experiments.tools.benchmark_loops import Contestant, Turn

# Smallest number of rounds.
LEAST_ROUNDS = 5
# Seconds of the trial from which the length of a block follows.
TRIAL = 0.1


def measure(
  case: Case,
  contestants: Sequence[Contestant],
  *,
  seconds: float,
  rounds: int,
) -> dict[str, Any]:
  """Check that all contestants do the same work, then let them take turns.

  Args:
    case: the case.
    contestants: new contestants, which have not run.
    seconds: time after which no round begins, except the first five.
    rounds: largest number of rounds.

  Returns:
    The measurement, of JSON types.

  Raises:
    ValueError: if parameters of contestants differ after equal steps, or a loss
      does not fall.
  """
  begun = time.monotonic()
  first = _check_equal_work(case, contestants)
  steps = [_steps_of_block(case, one) for one in contestants]
  lasted = time.monotonic() - begun
  print(f'{case.name}: compiled in {lasted:.0f} s, rounds begin', flush=True)
  waited = [one.waited() for one in contestants]
  turns, others = take_turns(contestants, steps, seconds, rounds)
  waited = [one.waited() - w for one, w in zip(contestants, waited)]
  found = [
    {
      'label': one.label,
      'kind': one.kind,
      'steps': steps[i],
      'seconds': [turn.seconds for turn in turns[i]],
      'waited': waited[i],
      'loss': turns[i][-1].loss,
      **first[i],
    }
    for i, one in enumerate(contestants)
  ]
  _check_losses(case, found)
  return {
    'case': case.name,
    'replicas': case.num_replicas,
    'batch_size': benchmark_cases.BATCH_SIZE,
    'period': benchmark_cases.PERIOD,
    'machine': records.machine(),
    'date': time.strftime('%Y-%m-%d', time.gmtime()),
    'others': others,
    'contestants': found,
  }


def take_turns(
  contestants: Sequence[Contestant],
  steps: Sequence[int],
  seconds: float,
  rounds: int,
) -> tuple[list[list[Turn]], list[float]]:
  """Let contestants take turns in rounds.

  Args:
    contestants: compiled contestants.
    steps: number of steps in a turn, for each contestant.
    seconds: time after which no round begins, except the first five.
    rounds: largest number of rounds.

  Returns:
    The turns of each contestant, and the share of the processors that other
    programs used in each round.
  """
  turns: list[list[Turn]] = [[] for _ in contestants]
  others: list[float] = []
  begun = time.monotonic()
  while len(others) < rounds:
    if time.monotonic() - begun > seconds and len(others) >= LEAST_ROUNDS:
      break
    busy, own = disturbances.busy_seconds(), _own_seconds(contestants)
    round_begun = time.monotonic()
    # The order alternates, because a contestant may slow down the next one.
    order = range(len(contestants))
    for i in order[:: -1 if len(others) % 2 else 1]:
      turns[i].append(contestants[i].run(steps[i]))
    lasted = time.monotonic() - round_begun
    busy = disturbances.busy_seconds() - busy
    own = _own_seconds(contestants) - own
    others.append(disturbances.share_of_others(busy, own, lasted))
  return turns, others


def _check_equal_work(
  case: Case, contestants: Sequence[Contestant]
) -> list[dict[str, float]]:
  """Run the first steps; return their seconds and differences of parameters."""
  results, expected = [], None
  for one in contestants:
    begun = time.perf_counter()
    one.run(case.checked)
    lasted = time.perf_counter() - begun
    found = one.average()
    expected = found if expected is None else expected
    if found.keys() != expected.keys():
      raise ValueError(f'{one.label} has other parameters')
    difference = max(
      float(np.abs(found[name] - expected[name]).max()) for name in expected
    )
    if not difference <= case.tolerance:
      raise ValueError(
        f'{case.name}: after {case.checked} steps, parameters of {one.label} '
        f'and of {contestants[0].label} differ by {difference:.2g}, expected '
        f'at most {case.tolerance:g}'
      )
    results.append({'first_seconds': lasted, 'difference': difference})
  return results


def _check_losses(case: Case, found: Sequence[dict[str, Any]]) -> None:
  at_first = benchmark_cases.initial_loss(case)
  for one in found:
    if not one['loss'] < at_first:
      raise ValueError(
        f'{case.name}: the loss of {one["label"]} did not fall, from '
        f'{at_first:.3g} to {one["loss"]:.3g}'
      )


def _steps_of_block(case: Case, one: Contestant) -> int:
  """Return the steps that take about `block_seconds`."""
  once = one.run(one.unit).seconds
  # Again and longer, because the time of few steps varies.
  units = max(1, int(min(TRIAL, case.block_seconds) / once))
  once = one.run(units * one.unit).seconds / units
  return one.unit * max(1, round(case.block_seconds / once))


def _own_seconds(contestants: Sequence[Contestant]) -> float:
  """Return the processor seconds of this process and all workers."""
  pids = [pid for one in contestants for pid in one.processes]
  pids.append(os.getpid())
  return sum(map(disturbances.process_seconds, pids))
