"""IN FLIGHT: the bound on dispatches that nobody has waited for.

Too many un-awaited dispatches with a collective dead-lock on CPU: 8 fake
devices stop at 16 of them, whichever programs they are of. So the bound is one
for all trainers, and the tokens are kept by the process, as the devices are.
"""

import collections

import jax

from prsgd_jax.base import Array

MAX_IN_FLIGHT = 2

_tokens: collections.deque[Array] = collections.deque()


def make_room() -> None:
  """Wait until another dispatch may begin."""
  while len(_tokens) >= MAX_IN_FLIGHT:
    jax.block_until_ready(_tokens.popleft())


def add(token: Array) -> None:
  """Remember a dispatch that was begun.

  Args:
    token: a result of the dispatch that is never donated.
  """
  _tokens.append(token)
