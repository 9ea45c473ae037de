"""Flags of the machines and links from which the time of a run is modeled."""

from absl import flags

import prsgd_jax as pr
from prsgd_jax.checks import check_number
from prsgd_jax.ledger.network import LEAST, MOST, NETWORK, Link, check_time

FLAGS = flags.FLAGS

flags.DEFINE_float(
  'step_time',
  NETWORK.step_time,
  'Modeled seconds per gradient on a replica of speed 1, >= 0.',
)
flags.DEFINE_list(
  'replica_speeds',
  [],
  'Modeled speed of each replica: --num_replicas numbers > 0 with commas '
  'between them. A replica of speed 2 needs half the --step_time. Default: '
  'all 1.',
)
flags.DEFINE_float(
  'jitter',
  NETWORK.jitter,
  'Modeled standard deviation of the logarithm of a step time, >= 0. With 0, '
  'all steps of a replica take equally long.',
)
flags.DEFINE_float(
  'latency',
  NETWORK.links['global'].latency,
  'Modeled seconds per message between groups (or replicas without groups), '
  '>= 0.',
)
flags.DEFINE_float(
  'bandwidth',
  NETWORK.links['global'].bandwidth,
  'Modeled bytes per second of a link between groups (or replicas without '
  'groups), > 0.',
)
flags.DEFINE_float(
  'group_latency',
  NETWORK.links['group'].latency,
  'Modeled seconds per message inside a group, >= 0.',
)
flags.DEFINE_float(
  'group_bandwidth',
  NETWORK.links['group'].bandwidth,
  'Modeled bytes per second of a link inside a group, > 0.',
)


def from_flags(
  values: flags.FlagValues, num_replicas: int
) -> pr.ledger.Network:
  """Return the network that the flags describe.

  Args:
    values: the parsed flags.
    num_replicas: number of replicas that the network connects.

  Raises:
    ValueError: if a value is out of range, or --replica_speeds does not have
      one number per replica.
  """
  for name in ('step_time', 'jitter', 'latency', 'group_latency'):
    check_time(f'--{name}', getattr(values, name))
  for name in ('bandwidth', 'group_bandwidth'):
    # Finite, because the value is written to a JSON file.
    check_number(
      f'--{name}', getattr(values, name), lambda x: LEAST <= x <= MOST,
      f'> 0, in [{LEAST:g}, {MOST:g}] bytes per second',
    )  # fmt: skip
  between = Link(values.latency, values.bandwidth)
  inside = Link(values.group_latency, values.group_bandwidth)
  try:
    speeds = tuple(float(s) for s in values.replica_speeds)
  except ValueError:
    given = ','.join(values.replica_speeds)
    raise ValueError(
      f'--replica_speeds expects numbers, got {given!r}'
    ) from None
  network = pr.ledger.Network(
    links={'global': between, 'group': inside, 'neighbor': between},
    step_time=values.step_time,
    speeds=speeds,
    jitter=values.jitter,
  )
  network.check(num_replicas)
  return network
