"""Compare what was measured on several hosts with the model of the ledger.

The model gets three numbers: the rate of the links without the headers of full
frames, the measured latency of a small message, and the measured time of a step
without communication. Everything else follows from the algorithms.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.hosts.cases import CASES, PERCEPTRON, Case, Workload
from experiments.running.records import json_files
from experiments.tools import disturbances
import prsgd_jax as pr

# Payload of a full Ethernet frame of TCP with time stamps, and its headers.
PAYLOAD, HEADERS = 1448, 66
# Test error to reach, in %.
TARGET = 5.0
# Steps of the model: a multiple of all periods.
MODELED = 48

_BLOCK_FORM = json_files.object_of(
  dict.fromkeys(
    ('steps', 'seconds', 'bytes', 'packets', 'loss'), json_files.number
  )
)
_FORM = json_files.object_of(
  {
    'machine': json_files.object_of({}),
    'date': json_files.text,
    'hosts': json_files.count,
    'bits_per_second': json_files.number,
    'latency': json_files.number,
    'others': json_files.list_of(json_files.number),
    'first': json_files.values_of(_BLOCK_FORM),
    'blocks': json_files.values_of(json_files.list_of(_BLOCK_FORM)),
  }
)


class Spread(NamedTuple):
  """A median, and the quartiles around it."""

  median: float
  low: float
  high: float


class Row(NamedTuple):
  """A case at one rate: per step, measured and modeled.

  Attributes:
    case: the case.
    bits_per_second: rate of the links.
    seconds: measured seconds per step.
    modeled_seconds: seconds per step in the ledger.
    payload: measured bytes that a host sent per step, without headers.
    on_wire: measured bytes that a host sent per step, with all headers.
    modeled_bytes: bytes per step in the ledger.
    to_target: steps and seconds to the test error `TARGET`; None if it was not
      reached. On a slow link, the steps are those of another rate.
  """

  case: Case
  bits_per_second: float
  seconds: Spread
  modeled_seconds: float
  payload: float
  on_wire: float
  modeled_bytes: float
  to_target: tuple[int, float] | None


def read(
  directory: pathlib.Path, workload: Workload = PERCEPTRON
) -> list[dict[str, Any]]:
  """Return the measurements in a directory, by rising rate.

  Args:
    directory: files of hosts_benchmark.py.
    workload: what was trained. Default: the perceptron.

  Raises:
    ValueError: if there are none, or a file is damaged.
  """
  files = directory.glob(f'*mbit{workload.suffix}.json')
  found = [json_files.read(path, _FORM) for path in files]
  if not found:
    raise ValueError(
      f'{directory} has no measurements; {workload.command} makes them'
    )
  return sorted(found, key=lambda measured: measured['bits_per_second'])


def seconds_per_step(measured: Mapping[str, Any], case: Case) -> Spread:
  """Return the measured seconds of a step of a case."""
  blocks = measured['blocks'][case.label]
  each = [
    blocks[i]['seconds'] / blocks[i]['steps']
    for i in disturbances.undisturbed(measured['others'])
  ]
  low, median, high = np.quantile(each, (0.25, 0.5, 0.75))
  return Spread(float(median), float(low), float(high))


def payload_rate(bits_per_second: float) -> float:
  """Return the bytes per second of a link without the headers of full frames.

  Args:
    bits_per_second: rate of the link.

  Example:
    >>> round(payload_rate(1e8))
    11955086
  """
  return bits_per_second / 8 * PAYLOAD / (PAYLOAD + HEADERS)


def network(measured: Mapping[str, Any]) -> pr.ledger.Network:
  """Return the network of the model."""
  rate = payload_rate(measured['bits_per_second'])
  link = pr.ledger.Link(measured['latency'], rate)
  return pr.ledger.Network(
    links=dict.fromkeys(pr.ledger.TIERS, link),
    step_time=seconds_per_step(measured, CASES[0]).median,
  )


def history(
  measured: Mapping[str, Any], case: Case
) -> list[tuple[int, float, float]]:
  """Return (steps, seconds, test error in %) after each block.

  The first block, which was compiled, and blocks of disturbed rounds count with
  the median of the others. The list is empty on a slow link.
  """
  blocks = [measured['first'][case.label], *measured['blocks'][case.label]]
  if 'test_accuracy' not in blocks[0]:
    return []
  median = seconds_per_step(measured, case).median
  quiet = {1 + i for i in disturbances.undisturbed(measured['others'])}
  steps, seconds, found = 0, 0.0, []
  for i, block in enumerate(blocks):
    steps += int(block['steps'])
    seconds += block['seconds'] if i in quiet else median * block['steps']
    error = round(100 * (1 - block['test_accuracy']), 6)  # 5, not 5.0000001
    found.append((steps, seconds, error))
  return found


def rows(everything: Sequence[Mapping[str, Any]]) -> list[Row]:
  """Return a row for each case at each rate."""
  return [
    _row(measured, case, everything)
    for measured in everything
    for case in CASES
  ]


def _row(
  measured: Mapping[str, Any],
  case: Case,
  everything: Sequence[Mapping[str, Any]],
) -> Row:
  blocks = measured['blocks'][case.label]
  steps = sum(block['steps'] for block in blocks)
  sent = sum(block['bytes'] for block in blocks)
  packets = sum(block['packets'] for block in blocks)
  modeled = pr.ledger.account(
    case.algorithm,
    PERCEPTRON.shapes(),
    measured['hosts'],
    MODELED,
    network(measured),
  )
  return Row(
    case,
    measured['bits_per_second'],
    seconds_per_step(measured, case),
    float(modeled.seconds[-1]) / MODELED,
    (sent - HEADERS * packets) / steps,
    sent / steps,
    float(modeled.bytes_sent[-1]) / MODELED,
    _to_target(measured, case, everything),
  )


def _to_target(
  measured: Mapping[str, Any],
  case: Case,
  everything: Sequence[Mapping[str, Any]],
) -> tuple[int, float] | None:
  """Return the steps and seconds to the target, None if it is not reached."""
  if case == CASES[0]:
    return None  # because its average is never sent
  for steps, seconds, error in history(measured, case):
    if error <= TARGET:
      return steps, seconds
  if history(measured, case):
    return None
  # The trajectory does not depend on the links, only its time.
  for other in everything:
    for steps, _, error in history(other, case):
      if error <= TARGET:
        return steps, steps * seconds_per_step(measured, case).median
  return None
