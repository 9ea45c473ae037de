"""POSITIONS of a meter as JSON, so that a checkpoint can hold one.

A resumed run reads its position instead of counting from step 0, which would
take time in proportion to the steps done.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prsgd_jax.ledger.clocks import Clock
from prsgd_jax.ledger.counting import Position


def to_json(position: Position) -> dict[str, Any]:
  """Return a position as JSON types; `from_json` restores it bit for bit.

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> run = pr.ledger.meter(pr.ssgd(optax.sgd(0.1)), shapes, 8, num_steps=10)
    >>> to_json(run.advance(run.init(), 2))['counts']
    [16, 2]
  """
  clock = position.clock
  times = clock.times if clock.apart else clock.times[:1]
  return {
    'step': position.step,
    'counts': list(position.counts),
    'lost': list(position.lost),
    'num_replicas': len(clock.times),
    'times': times.tolist(),
    'apart': clock.apart,
    'jitter': clock.jitter.bit_generator.state,
    'draw': clock.draw.bit_generator.state,
  }


def from_json(saved: Mapping[str, Any] | None, start: Position) -> Position:
  """Return the saved position, or `start` if it is of another meter.

  Counting again from `start` gives an equal result and only takes longer.

  Args:
    saved: the result of `to_json`; None if there is none.
    start: the position before the first step (`Meter.init`).

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> run = pr.ledger.meter(pr.ssgd(optax.sgd(0.1)), shapes, 8, num_steps=10)
    >>> saved = to_json(run.advance(run.init(), 2))
    >>> run.spent(from_json(saved, run.init())).rounds
    2
  """
  num_replicas = len(start.clock.times)
  if (
    saved is None
    or saved['num_replicas'] != num_replicas
    or len(saved['counts']) != len(start.counts)
  ):
    return start
  times = np.broadcast_to(np.array(saved['times'], float), num_replicas).copy()
  clock = Clock(
    times,
    saved['apart'],
    _generator(saved['jitter']),
    _generator(saved['draw']),
  )
  counts, lost = (tuple(saved[name]) for name in ('counts', 'lost'))
  return Position(saved['step'], counts, clock, lost)


def _generator(state: Mapping[str, Any]) -> np.random.Generator:
  generator = np.random.default_rng(0)
  generator.bit_generator.state = dict(state)
  return generator
