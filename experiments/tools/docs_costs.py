"""What every algorithm sends, for the documentation: the ledger's own count.

The algorithms have the settings of their presets. Nothing runs: the ledger
works on shapes.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.flags import algorithm_flags
import prsgd_jax as pr
from prsgd_jax.engine.train_state import initial_shapes

PRESETS = pathlib.Path(__file__).parents[1] / 'presets'
NUM_REPLICAS = 8
# The length of the presets.
NUM_STEPS = 600
# A million parameters in two layers, because some algorithms send layers.
SHAPES = {
  name: jax.ShapeDtypeStruct(shape, jnp.float32)
  for name, shape in (('first', (500, 1000)), ('second', (1000, 500)))
}
MODEL_BYTES = 4 * sum(x.size for x in SHAPES.values())


class Message(NamedTuple):
  """What the replicas send in a run, of one kind and size.

  Attributes:
    kind: 'all', 'group' or 'neighbors', the replicas that a message joins.
    bytes_sent: bytes that one replica sends in a round.
    rounds: rounds of the run; None if they depend on the data.
  """

  kind: str
  bytes_sent: float
  rounds: int | None


def preset(name: str) -> str:
  """Return the preset of an algorithm; a second name has the first one's.

  Example:
    >>> preset('local_sgd')
    'digits_k_avg'
  """
  return f'digits_{algorithm_flags.find(name)}'


def settings(name: str) -> dict[str, str]:
  """Return flag -> value of the preset of an algorithm."""
  lines = (PRESETS / f'{preset(name)}.flags').read_text().splitlines()
  pairs = [x[2:].partition('=') for x in lines if x.startswith('--')]
  return {flag: value.replace(',', '+') for flag, _, value in pairs}


def own_settings(name: str) -> dict[str, str]:
  """Return the settings of the preset that are the algorithm's own.

  Example:
    >>> own_settings('choco_sgd')['mixing']
    'ring'
  """
  own = algorithm_flags.own_flags(algorithm_flags.find(name))
  return {k: v for k, v in settings(name).items() if k in own}


def entries(
  name: str, options: Mapping[str, str], num_steps: int
) -> tuple[pr.base.Work | pr.base.Traffic, ...]:
  """Return the ledger's entries of a run with a million parameters.

  Args:
    name: of the algorithm.
    options: its own settings, by flag.
    num_steps: T, the length of the run.
  """
  provided = {
    'learning_rate': 0.02,
    'momentum': 0.9,
    'num_steps': num_steps,
    'draw_seed': 0,
  }
  parsed = {flag: _parse(flag, value) for flag, value in options.items()}
  made = algorithm_flags.build(
    algorithm_flags.find(name), optax.sgd(0.02), parsed, provided
  )
  shapes = initial_shapes(made, NUM_REPLICAS, SHAPES)
  return made.cost(shapes, NUM_REPLICAS, np.arange(num_steps))


def _parse(flag: str, value: str) -> Any:
  kind = algorithm_flags.FLAG_KINDS[flag]
  return kind(value) if kind in (int, float) else value


def kind(sent: pr.base.Traffic) -> str:
  """Return which replicas a message joins: all, a group, or neighbors."""
  return {'global': 'all', 'group': 'group'}.get(sent.tier, 'neighbors')


def messages(name: str) -> list[Message]:
  """Return what the replicas send in a run of the preset.

  Example:
    >>> messages('k_avg')
    [Message(kind='all', bytes_sent=7000000.0, rounds=37)]
  """
  rounds: dict[tuple[str, float], list[int | None]] = {}
  for cost in entries(name, own_settings(name), NUM_STEPS):
    if isinstance(cost, pr.base.Traffic) and cost.bytes_sent:
      fires = None if cost.fires is None else int(cost.fires.sum())
      key = (kind(cost), float(cost.bytes_sent))
      rounds.setdefault(key, []).append(fires)
  return [
    Message(found, size, None if None in counts else sum(filter(None, counts)))
    for (found, size), counts in rounds.items()
  ]


def bytes_per_step(sent: Sequence[Message]) -> float:
  """Return bytes that a replica sends in a step, the scheduled ones."""
  return sum(m.bytes_sent * (m.rounds or 0) for m in sent) / NUM_STEPS


def from_json(kept: Sequence[Mapping[str, Any]]) -> list[Message]:
  """Return the messages of a list of objects."""
  return [Message(**each) for each in kept]


def to_json(sent: Sequence[Message]) -> list[dict[str, Any]]:
  """Return the messages as objects."""
  return [each._asdict() for each in sent]
