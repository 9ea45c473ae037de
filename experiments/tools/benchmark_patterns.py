"""Measure the seconds of a step by the number of replicas on one device.

Contestants are patterns of communication with several numbers of replicas. Each
communicates in every step, so that the time of a step includes it.
"""

from collections.abc import Callable, Mapping, Sequence
import time
from typing import Any

import numpy as np

from experiments.running.records import json_files, records
from experiments.tools import (
  benchmark_cases,
  benchmark_loops,
  benchmark_rounds,
  disturbances,
  tables,
)
from experiments.tools.benchmark_cases import BATCH_SIZE, Case
from experiments.tools.benchmark_loops import Contestant
from experiments.tools.benchmark_tables import Spread, spread, three_digits
from experiments.tools.tables import Column
import prsgd_jax as pr
from prsgd_jax.base import ReplicaTransformation

# Steps of a dispatch.
DISPATCH = 4
GROUP_SIZE = 8
# Numbers of replicas whose times are compared. Programs of few replicas spend
# much of a step on work that is independent of the replicas.
COMPARED = (64, 1024)

PATTERNS: Mapping[str, Callable[[], ReplicaTransformation]] = {
  'none': lambda: pr.local_sgd(
    benchmark_cases.optimizer(), period=pr.schedules.never()
  ),
  'mean': lambda: pr.local_sgd(benchmark_cases.optimizer(), period=1),
  'groups': lambda: pr.hier_avg(
    benchmark_cases.optimizer(),
    local_period=1,
    global_period=DISPATCH,
    group_size=GROUP_SIZE,
  ),
  'ring': lambda: pr.d_psgd(
    benchmark_cases.optimizer(), mixing=pr.graphs.ring()
  ),
  'random_pairs': lambda: pr.d_psgd(
    benchmark_cases.optimizer(), mixing=pr.graphs.random_matching()
  ),
  'choco': lambda: pr.choco_sgd(
    benchmark_cases.optimizer(),
    mixing=pr.graphs.ring(),
    compressor=pr.codecs.top_k(0.1),
    consensus_step_size=0.2,
  ),
}

FORM = json_files.object_of(
  {
    'batch_size': json_files.count,
    'machine': json_files.object_of({}),
    'date': json_files.text,
    'others': json_files.list_of(json_files.number),
    'contestants': json_files.list_of(
      json_files.object_of(
        {
          'pattern': json_files.text,
          'replicas': json_files.count,
          'steps': json_files.count,
          'seconds': json_files.list_of(json_files.number),
          'compile_seconds': json_files.number,
          'loss': json_files.number,
        }
      )
    ),
  }
)


def make_case(num_replicas: int, data_dir: str | None) -> Case:
  """Return the MLP on the digits, repeated until they fill a batch of all.

  Args:
    num_replicas: N.
    data_dir: directory of the data sets.
  """
  case = benchmark_cases.make_case('mlp2', data_dir)
  times = -(-num_replicas * BATCH_SIZE // len(case.data['label']))
  data = {name: np.concatenate([x] * times) for name, x in case.data.items()}
  return case._replace(num_replicas=num_replicas, dispatch=DISPATCH, data=data)


def contestant(case: Case, pattern: str) -> Contestant:
  """Return the engine with a pattern, and with all replicas on one device."""
  trainer = pr.trainer(
    PATTERNS[pattern](),
    benchmark_cases.task(case).loss_fn,
    num_replicas=case.num_replicas,
    num_devices=1,
  )
  return benchmark_loops.of_trainer(
    pattern,
    benchmark_loops.ENGINE,
    case,
    trainer,
    benchmark_cases.resident(case),
  )


def measure(
  cases: Sequence[Case], patterns: Sequence[str], rounds: int
) -> dict[str, Any]:
  """Compile all programs, then let them take turns.

  Every turn has about as many steps times replicas as the others.

  Args:
    cases: a case for each number of replicas.
    patterns: names in `PATTERNS`.
    rounds: number of turns of each contestant.

  Returns:
    The measurement, of JSON types.

  Raises:
    ValueError: if a pattern does not fit a number of replicas, or if a loss
      does not fall.
  """
  pairs = [(case, pattern) for pattern in patterns for case in cases]
  contestants, first = [], []
  for case, pattern in pairs:
    contestants.append(contestant(case, pattern))
    first.append(contestants[-1].run(DISPATCH).seconds)
  most = max(case.num_replicas for case in cases)
  steps = [DISPATCH * (most // case.num_replicas) for case, _ in pairs]
  turns, others = benchmark_rounds.take_turns(
    contestants, steps, seconds=float('inf'), rounds=rounds
  )
  found = []
  for i, (case, pattern) in enumerate(pairs):
    seconds = [turn.seconds for turn in turns[i]]
    usual = float(np.median(seconds)) * DISPATCH / steps[i]
    found.append(
      {
        'pattern': pattern,
        'replicas': case.num_replicas,
        'steps': steps[i],
        'seconds': seconds,
        'compile_seconds': first[i] - usual,
        'loss': turns[i][-1].loss,
      }
    )
  _check_losses(cases[0], found)
  return {
    'batch_size': BATCH_SIZE,
    'machine': records.machine(),
    'date': time.strftime('%Y-%m-%d', time.gmtime()),
    'others': others,
    'contestants': found,
  }


def _check_losses(case: Case, found: Sequence[Mapping[str, Any]]) -> None:
  at_first = benchmark_cases.initial_loss(case)
  for one in found:
    if not one['loss'] < at_first:
      raise ValueError(
        f'the loss of {one["pattern"]} with {one["replicas"]} replicas did '
        f'not fall, from {at_first:.3g} to {one["loss"]:.3g}'
      )


def microseconds(
  measured: Mapping[str, Any], one: Mapping[str, Any]
) -> np.ndarray:
  """Return the microseconds per step and replica, in each round that counts.

  Args:
    measured: the measurement.
    one: one of its contestants.
  """
  kept = disturbances.undisturbed(measured['others'])
  return np.array(one['seconds'])[kept] * 1e6 / (one['steps'] * one['replicas'])


def growth(measured: Mapping[str, Any], pattern: str) -> Spread | None:
  """Return how much longer a replica takes with 1024 replicas than with 64.

  Args:
    measured: the measurement.
    pattern: name of the pattern.

  Returns:
    Median and quartiles of the ratio, which is 1 if the seconds of a step are
    proportional to the number of replicas. None if one was not measured.
  """
  found = {
    one['replicas']: microseconds(measured, one)
    for one in measured['contestants']
    if one['pattern'] == pattern
  }
  few, many = COMPARED
  return spread(found[many] / found[few]) if {*COMPARED} <= {*found} else None


def rows(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Return a row for each pattern."""
  found: dict[str, dict[str, Any]] = {}
  for one in measured['contestants']:
    pattern, n = one['pattern'], one['replicas']
    row = found.setdefault(pattern, {'pattern': pattern.replace('_', ' ')})
    row[f'step{n}'] = np.median(microseconds(measured, one)) * n / 1000
    row[f'compile{n}'] = one['compile_seconds']
  for pattern, row in found.items():
    grows = growth(measured, pattern)
    if grows is not None:
      row['growth'] = '{:.2f} ({:.2f} to {:.2f})'.format(*grows)
  return list(found.values())


def columns(measured: Mapping[str, Any]) -> list[Column]:
  """Return the columns of the table."""
  sizes = sorted({one['replicas'] for one in measured['contestants']})
  few, many = COMPARED
  grows = f'per replica, {many} to {few}'
  return [
    Column('pattern'),
    *(
      Column(f'step{n}', f'N={n}', three_digits, is_number=True) for n in sizes
    ),
    *([Column('growth', grows)] if {*COMPARED} <= {*sizes} else []),
    *(
      Column(f'compile{n}', f'compile N={n}', '{:.1f} s'.format, is_number=True)
      for n in sizes[:: max(1, len(sizes) - 1)]
    ),
  ]


def conditions(measured: Mapping[str, Any]) -> str:
  """Return a line on the machine, the rounds and the disturbances."""
  machine, others = measured['machine'], measured['others']
  kept = disturbances.undisturbed(others)
  words = (
    'Milliseconds per step of N replicas on one device, in batches of '
    f'{measured["batch_size"]}. {len(kept)} of {len(others)} rounds count. '
    f'{measured["date"]}, {machine["cpus"]} {machine["processor"]} cores, JAX '
    f'{machine["jax"]}, Python {machine["python"]}, commit '
    f'{machine["commit"]}.'
  )
  if disturbances.is_disturbed(others):
    words += f' Other programs used up to {max(others):.0%} of the processors.'
  return words


def terminal(measured: Mapping[str, Any]) -> str:
  """Return the measurement for a terminal."""
  table = tables.aligned(rows(measured), columns(measured))
  return f'{conditions(measured)}\n\n{table}'


def markdown(measured: Mapping[str, Any]) -> str:
  """Return the measurement in Markdown."""
  table = tables.markdown(rows(measured), columns(measured))
  return f'{conditions(measured)}\n\n{table}'
