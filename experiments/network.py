"""The machines and links that the time of a run is modelled on, by flags."""

from absl import flags

import prsgd_jax as pr
from prsgd_jax.network import NETWORK, Link

FLAGS = flags.FLAGS

flags.DEFINE_float(
  'step_time', NETWORK.step_time, 'Modelled seconds of a gradient at speed 1.'
)
flags.DEFINE_list(
  'replica_speeds', [], 'Modelled: one number for each replica [all 1].'
)
flags.DEFINE_float(
  'jitter', NETWORK.jitter, "Modelled: deviation of a step time's logarithm."
)
flags.DEFINE_float(
  'latency', NETWORK.links['global'].latency, 'Modelled seconds per message.'
)
flags.DEFINE_float(
  'bandwidth', NETWORK.links['global'].bandwidth, 'Modelled bytes per second.'
)
flags.DEFINE_float(
  'group_latency', NETWORK.links['group'].latency, 'The same inside a group.'
)
flags.DEFINE_float(
  'group_bandwidth', NETWORK.links['group'].bandwidth, 'Likewise.'
)


def from_flags(values: flags.FlagValues, num_replicas: int) -> pr.Network:
  """The network that the flags describe.

  Raises:
    ValueError: if it is not one of so many replicas.
  """
  between = Link(values.latency, values.bandwidth)
  inside = Link(values.group_latency, values.group_bandwidth)
  try:
    speeds = tuple(float(s) for s in values.replica_speeds)
  except ValueError:
    given = ','.join(values.replica_speeds)
    raise ValueError(
      f'--replica_speeds expects numbers, got {given!r}'
    ) from None
  network = pr.Network(
    links={'global': between, 'group': inside, 'neighbour': between},
    step_time=values.step_time,
    speeds=speeds,
    jitter=values.jitter,
  )
  network.check(num_replicas)
  return network
