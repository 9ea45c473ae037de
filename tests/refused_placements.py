"""What the placement refuses in several processes, with its messages.

Imported after JAX has started, because it asks for devices.
"""

import jax
import optax

import prsgd_jax as pr
from tests import observed_rows


def refused():
  """Name of a case -> the message of its error, '' if there was none."""
  own, devices = jax.process_index(), jax.devices()
  others = [d for d in devices if d.process_index != own]
  cases = {
    'replicas': lambda: pr.engine.ReplicaMesh(7),
    'devices': lambda: pr.engine.ReplicaMesh(8, num_devices=1),
    'indivisible': lambda: pr.engine.ReplicaMesh(6, num_devices=4),
    'too_many': lambda: pr.engine.ReplicaMesh(8, num_devices=8),
    'unequal': lambda: pr.engine.ReplicaMesh(6, devices=devices[:3]),
    'others': lambda: pr.engine.ReplicaMesh(8, devices=others),
    'state': _state_of_another_mesh,
  }
  return {name: _message(case) for name, case in cases.items()}


def _message(case):
  try:
    case()
  except ValueError as error:
    return str(error)
  return ''


def _state_of_another_mesh():
  one, other = (
    pr.trainer(
      pr.ssgd(optax.sgd(0.1)),
      observed_rows.loss_fn,
      num_replicas=8,
      num_devices=count,
    )
    for count in (2, 4)
  )
  arrays, _, point = observed_rows.inputs()
  data = pr.data.drawn(arrays, observed_rows.batch_fn)
  other.run(one.init(*point), data, 1)
