"""PROCESSES: what several processes of one run agree on, on the host.

JAX's distributed runtime has a coordination service: a store of texts, and
barriers with a time limit. It needs no device, so that a process can wait for
the others while its devices work. With one process every function returns at
once. Every process must make the same calls in the same order.
"""

import collections
import json
from typing import Any

# Seconds that the others may be late, because they may still be compiling or
# writing a checkpoint.
LIMIT = 600.0

_calls: collections.Counter[str] = collections.Counter()


class ProcessError(RuntimeError):
  """Another process did not take part; the message names it."""


def index() -> int:
  """Return the index of this process, 0-based.

  Not by `jax.process_index`, because that starts the devices, after which their
  number cannot be set.
  """
  return _runtime().process_id


def count() -> int:
  """Return the number of processes; as `index`, without starting devices."""
  return _runtime().num_processes


def is_first() -> bool:
  """Return whether this is process 0, which writes what only one may write."""
  return index() == 0


def barrier(name: str, seconds: float = LIMIT) -> None:
  """Wait until all processes are here.

  Args:
    name: what they wait for, for the message.
    seconds: how long to wait. Default: 10 minutes.

  Raises:
    ProcessError: if some did not come in time.

  Example:
    >>> barrier('the checkpoint', seconds=60)  # with one process: at once
  """
  if count() > 1:
    _meet(name, _unique(name), seconds)


def agree(name: str, value: Any, seconds: float = LIMIT) -> Any:
  """Return the value that process 0 passed, on every process.

  Args:
    name: what is agreed on, for the message.
    value: value of JSON types; the value of process 0 counts.
    seconds: how long to wait for process 0. Default: 10 minutes.

  Raises:
    ProcessError: if process 0, or another one, did not come in time.

  Example:
    >>> agree('the step to resume from', 40)
    40
  """
  if count() == 1:
    return value
  key = _unique(name)
  if is_first():
    _client().key_value_set(f'{key}/value', json.dumps(value))
  _meet(name, key, seconds)
  found = _client().blocking_key_value_get(f'{key}/value', 1000)
  _meet(name, f'{key}/read', seconds)
  if is_first():
    _client().key_value_delete(f'{key}/value')
  return json.loads(found)


def collect(name: str, value: Any, seconds: float = LIMIT) -> list[Any]:
  """Return the values that all processes passed, by their index.

  Args:
    name: what is collected, for the message.
    value: value of JSON types of this process.
    seconds: how long to wait for the others. Default: 10 minutes.

  Raises:
    ProcessError: if some did not come in time.

  Example:
    >>> collect('the files written', ['a', 'b'])
    [['a', 'b']]
  """
  if count() == 1:
    return [value]
  key = _unique(name)
  own = f'{key}/value/{index()}'
  _client().key_value_set(own, json.dumps(value))
  _meet(name, key, seconds)
  listed = _client().key_value_dir_get(f'{key}/value/')
  found = {int(key.rpartition('/')[2]): json.loads(x) for key, x in listed}
  _meet(name, f'{key}/read', seconds)
  _client().key_value_delete(own)
  return [found[p] for p in range(count())]


def store() -> Any:
  """Return the client of the store of texts, which any thread may use."""
  return _client()


def coordinator_address() -> str | None:
  """Return HOST:PORT of process 0; None with one process."""
  return _runtime().coordinator_address


def _meet(name: str, key: str, seconds: float) -> None:
  """Wait at the barrier with this key, which is used once."""
  client = _client()
  # Noted, because the runtime's own error names one missing process at most.
  client.key_value_set(f'{key}/here/{index()}', '')
  try:
    client.wait_at_barrier(key, int(seconds * 1000))
  except RuntimeError as error:
    raise ProcessError(
      f'{name}: {_missing(key)} did not arrive within {seconds:g} s'
    ) from error
  client.key_value_delete(f'{key}/here/{index()}')


def _missing(key: str) -> str:
  """Return which processes have not reached a barrier, for a message."""
  try:
    listed = _client().key_value_dir_get(f'{key}/here/')
  except RuntimeError:  # because the process that keeps the store is gone
    return 'process 0'
  here = {int(name.rpartition('/')[2]) for name, _ in listed}
  gone = [p for p in range(count()) if p not in here]
  if not gone:
    return 'a process'
  return f'process{"es" if gone[1:] else ""} {", ".join(map(str, gone))}'


def _unique(name: str) -> str:
  """Return a key for this call, because barriers and values are used once."""
  _calls[name] += 1
  return f'prsgd_jax/{name}/{_calls[name]}'


def _client() -> Any:
  return _runtime().client


def _runtime() -> Any:
  # Private, because JAX has no public way to the store and its barriers.
  from jax._src import distributed

  return distributed.global_state
