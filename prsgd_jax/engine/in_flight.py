"""IN FLIGHT: the bound on dispatches that run without being awaited.

Too many dispatches with a collective dead-lock on CPU: 8 fake devices stop at
16 of them, of any programs. All trainers of a process therefore share one
bound, because they share the devices.
"""

import collections

import jax

from prsgd_jax.base import Array

MAX_IN_FLIGHT = 2

_tokens: collections.deque[Array] = collections.deque()


def make_room() -> None:
  """Wait until another dispatch may start."""
  while len(_tokens) >= MAX_IN_FLIGHT:
    jax.block_until_ready(_tokens.popleft())


def add(token: Array) -> None:
  """Record a dispatch that has started.

  Args:
    token: a result of the dispatch that is never donated.
  """
  _tokens.append(token)


def newest() -> Array | None:
  """Return the token of the newest dispatch, None if there is none."""
  return _tokens[-1] if _tokens else None
