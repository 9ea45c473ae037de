"""The measured seconds of a step and of a round on four hosts.

They come from the kept measurements of hosts_benchmark.py, in which four hosts
train a perceptron of 301,066 parameters (1.2 MB). ResNet-20 has 269,722, and
ResNet-8 75,290.
"""

import pathlib
from typing import NamedTuple

from experiments.hosts import comparing
from experiments.hosts.cases import CASES

MEASUREMENTS = pathlib.Path(__file__).parents[2] / 'results' / 'hosts'
# Rate of the links in bits per second.
RATE = 100e6
_WITHOUT, _SSGD = CASES[:2]


class HostTimes(NamedTuple):
  """Measured seconds, medians.

  Attributes:
    step: seconds of a step without communication.
    round: seconds that an average of all replicas adds.
    bits_per_second: rate of the links.
    hosts: number of hosts.
  """

  step: float
  round: float
  bits_per_second: float
  hosts: int


def read(
  directory: pathlib.Path = MEASUREMENTS, rate: float = RATE
) -> HostTimes:
  """Read the times at one rate of the links.

  Args:
    directory: files of hosts_benchmark.py.
    rate: bits per second. Default: 100 Mb/s.

  Raises:
    ValueError: if there is no measurement at this rate, or a file is damaged.
  """
  for found in comparing.read(directory):
    if found['bits_per_second'] == rate:
      step = comparing.seconds_per_step(found, _WITHOUT).median
      whole = comparing.seconds_per_step(found, _SSGD).median
      return HostTimes(step, whole - step, rate, found['hosts'])
  raise ValueError(
    f'{directory} has no measurement at {rate:g} bits per second; make '
    'hosts_benchmark makes them'
  )
