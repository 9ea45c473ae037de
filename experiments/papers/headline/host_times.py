"""The measured seconds of a step and of a round on four hosts.

They come from the kept measurements of hosts_benchmark.py with the networks of
the headline figure.
"""

import pathlib
from typing import NamedTuple

from experiments.hosts import comparing
from experiments.hosts.cases import RESNET8, Workload

MEASUREMENTS = pathlib.Path(__file__).parents[2] / 'results' / 'hosts'
# Rate of the links in bits per second.
RATE = 100e6


class HostTimes(NamedTuple):
  """Measured seconds, medians.

  Attributes:
    step: seconds of a step without communication.
    round: seconds that an average of all replicas adds.
    bits_per_second: rate of the links.
    hosts: number of hosts, with one replica each.
  """

  step: float
  round: float
  bits_per_second: float
  hosts: int


def read(
  workload: Workload = RESNET8,
  directory: pathlib.Path = MEASUREMENTS,
  rate: float = RATE,
) -> HostTimes:
  """Read the times at one rate of the links.

  Args:
    workload: the network. Default: the one of run A.
    directory: files of hosts_benchmark.py.
    rate: bits per second. Default: 100 Mb/s.

  Raises:
    ValueError: if there is no measurement at this rate, or a file is damaged.
  """
  for found in comparing.read(directory, workload):
    if found['bits_per_second'] == rate:
      without, ssgd = workload.cases[:2]
      step = comparing.seconds_per_step(found, without).median
      whole = comparing.seconds_per_step(found, ssgd).median
      return HostTimes(step, whole - step, rate, found['hosts'])
  raise ValueError(
    f'{directory} has no measurement at {rate:g} bits per second; '
    f'{workload.command} makes them'
  )
