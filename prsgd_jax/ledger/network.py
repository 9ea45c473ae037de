"""The machines and links on which the time of a run is modeled."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prsgd_jax.base import Traffic
from prsgd_jax.checks import check_number, check_step

TIERS = ('global', 'group', 'neighbor')
# Limits of times and rates, so that no sum over a run overflows.
MOST = 1e100
LEAST = 1e-100


class Link(NamedTuple):
  """Links of a tier.

  Attributes:
    latency: seconds per message, >= 0.
    bandwidth: bytes per second, > 0.
  """

  latency: float
  bandwidth: float


# Round numbers for machines on 10 Gb/s Ethernet, with a group in each machine.
ETHERNET = Link(latency=50e-6, bandwidth=1.25e9)
INSIDE = Link(latency=5e-6, bandwidth=50e9)


class Network(NamedTuple):
  """Machines and links of the modeled time.

  Attributes:
    links: tier -> Link, for 'global', 'group' and 'neighbor'.
    step_time: seconds for one gradient and update at speed 1.
    speeds: [N], the relative speed of each replica, > 0. Default: all 1.
    jitter: standard deviation of the logarithm of a step's time, >= 0. The mean
      time does not change.
    seed: seed of the jitter and of random graphs.
  """

  links: Mapping[str, Link] = {
    'global': ETHERNET,
    'group': INSIDE,
    'neighbor': ETHERNET,
  }
  step_time: float = 10e-3
  speeds: tuple[float, ...] = ()
  jitter: float = 0.0
  seed: int = 0

  def check(self, num_replicas: int) -> None:
    """Raise ValueError unless the network fits this number of replicas."""
    if set(self.links) != set(TIERS):
      raise ValueError(
        f'links must have the tiers {TIERS}, got {tuple(self.links)}'
      )
    for tier, link in self.links.items():
      check_time(f'latency of the {tier} links', link.latency)
      check_number(
        f'bandwidth of the {tier} links',
        link.bandwidth,
        lambda x: x >= LEAST,
        f'>= {LEAST:g}',
        infinite=True,
      )
    check_time('step_time', self.step_time)
    check_time('jitter', self.jitter)
    check_step('seed', self.seed)
    if len(self.speeds) not in (0, num_replicas):
      raise ValueError(
        f'speeds must be one number > 0 for each of the {num_replicas} '
        f'replicas, got {len(self.speeds)}'
      )
    for speed in self.speeds:
      check_number(
        'speeds',
        speed,
        lambda x: LEAST <= x <= MOST,
        f'one number > 0 for each of the {num_replicas} replicas, in '
        f'[{LEAST:g}, {MOST:g}]',
      )

  def seconds(self, sent: Traffic) -> float:
    """Return the seconds of one round, from the arrival of its last replica."""
    link = self.links[sent.tier]
    return sent.latencies * link.latency + sent.bytes_sent / link.bandwidth

  def pace(self, num_replicas: int) -> np.ndarray:
    """Return the seconds of a step on every replica, float64[N]."""
    return self.step_time / np.array(self.speeds or [1.0] * num_replicas)


NETWORK = Network()


def check_time(name: str, value: float) -> None:
  """Raise ValueError unless the value is a valid time or deviation."""
  check_number(
    name, value, lambda x: 0 <= x <= MOST, f'>= 0 and at most {MOST:g}'
  )
