"""ROUTES: the messages between devices that permute the rows of replicas.

Planned in NumPy before tracing. Replica r is row r mod V of device r // V, and
a message carries rows of every device to one other device.
"""

import itertools
from typing import NamedTuple

import numpy as np


class Message(NamedTuple):
  """Rows that travel together, with a device as the sender of each device.

  Attributes:
    origin: int[D], the device that sends to each device.
    real: bool[D], whether the device needs these rows. Others fill its block.
    sent: int[D, w], the rows that each device sends.
    kept: int[D, w], the rows at which each device stores what it receives.
  """

  origin: np.ndarray
  real: np.ndarray
  sent: np.ndarray
  kept: np.ndarray


def messages(source: np.ndarray, block: int, num_devices: int) -> list[Message]:
  """Split a permutation of replicas into messages of whole devices.

  The rows between devices are a V-regular bipartite multigraph. König's theorem
  gives a permutation of devices among its edges. One message takes as many rows
  of it as its rarest edge has, which removes this edge. Messages are also cut
  where a device needs no more rows of another one. So there are at most 2 D^2
  messages for any V, and V at most.

  Args:
    source: int[N], the sender of each replica; -1 for none.
    block: V.
    num_devices: D.

  Example:
    >>> sent, = messages(np.array([2, 3, 0, 1]), 2, 2)
    >>> sent.origin.tolist(), sent.sent.tolist(), sent.kept.tolist()
    ([1, 0], [[0, 1], [0, 1]], [[0, 1], [0, 1]])
  """
  from scipy.optimize import linear_sum_assignment

  needed = source >= 0
  source = source.copy()
  source[~needed] = np.setdiff1d(np.arange(len(source)), source)
  if block == 1:
    rows = np.zeros((num_devices, 1), int)
    return [Message(source, needed, rows, rows)]
  waiting = _waiting(source, needed, block, num_devices)
  count = np.array([[len(rows) for rows in each] for each in waiting])
  found = []
  while count.any():
    device, origin = linear_sum_assignment(count == 0)
    number = count[device, origin].min()
    count[device, origin] -= number
    left = count[device, origin]
    to = np.stack(
      [
        waiting[d][o][n : n + number]
        for d, o, n in zip(device, origin, left, strict=True)
      ]
    )
    found += _cut(origin, to, source, needed, block)
  return found


def _waiting(
  source: np.ndarray, needed: np.ndarray, block: int, num_devices: int
) -> list[list[np.ndarray]]:
  """Return the receivers on device d of rows of device o, at [d][o].

  Those that need no row come first, because the lists are used from the end.
  """
  pair = np.arange(len(source)) // block * num_devices + source // block
  order = np.lexsort((needed, pair))
  ends = np.cumsum(np.bincount(pair, minlength=num_devices**2))
  parts = np.split(order, ends[:-1])
  return [
    parts[d * num_devices : (d + 1) * num_devices] for d in range(num_devices)
  ]


def _cut(
  origin: np.ndarray,
  to: np.ndarray,
  source: np.ndarray,
  needed: np.ndarray,
  block: int,
) -> list[Message]:
  """Cut the receivers int[D, w] where a device begins to need its rows."""
  begins = (~needed[to]).sum(axis=1)
  cuts = np.unique([0, *begins, to.shape[1]])
  inverse = np.argsort(origin)  # the receiver of each sender
  found = []
  for start, stop in itertools.pairwise(cuts):
    here = to[:, start:stop]
    found.append(
      Message(
        origin, begins <= start, source[here][inverse] % block, here % block
      )
    )
  return found
