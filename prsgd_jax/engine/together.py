"""TOGETHER: work of the processes of a mesh, which fails in all or in none.

An error in one process would leave the others waiting, or believing in a file
that is not there. Here every process learns of the error and raises it. Nothing
here uses a device, so a thread may call it while a run continues.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from prsgd_jax.engine import processes
from prsgd_jax.engine.replica_mesh import ReplicaMesh

T = TypeVar('T')


def is_first(mesh: ReplicaMesh) -> bool:
  """Return whether this is the first process of a mesh."""
  return mesh.process == 0


def everywhere(
  mesh: ReplicaMesh, name: str, work: Callable[[], T], error: type[Exception]
) -> T:
  """Do work on every process, and wait until all have done theirs.

  Args:
    mesh: mesh of one process or of all.
    name: what is done, for the message; different for calls in other threads.
    work: function to call on this process.
    error: exception to raise where it did not fail, made of one message.

  Returns:
    The result on this process.

  Raises:
    error: if the work failed on another process; the message starts with its
      number. Where the work failed, the exception is its own.
    ProcessError: if a process did not arrive in time.

  Example:
    >>> everywhere(ReplicaMesh(1), 'the answer', lambda: 6 * 7, ValueError)
    42
  """
  if mesh.num_processes == 1:
    return work()
  caught = result = None
  try:
    result = work()
  except Exception as failure:  # any, because the others must not wait for it
    caught = failure
  text = None if caught is None else ' '.join(str(caught).split())
  reasons = collect(mesh, name, text)
  if caught is not None:
    raise caught
  for process, reason in enumerate(reasons):
    if reason is not None:
      raise error(f'process {process}: {reason}')
  return result  # type: ignore[return-value]


def on_first(
  mesh: ReplicaMesh, name: str, work: Callable[[], Any], error: type[Exception]
) -> Any:
  """Do work on the first process, and return its result on every process.

  Args:
    mesh: mesh of one process or of all.
    name: what is done, for the message; different for calls in other threads.
    work: function to call on the first process; its result is of JSON types.
    error: exception to raise where it did not fail, made of one message.

  Raises:
    error: if the work failed, on the other processes.
    ProcessError: if a process did not arrive in time.

  Example:
    >>> on_first(ReplicaMesh(1), 'the answer', lambda: 6 * 7, ValueError)
    42
  """
  own = work if is_first(mesh) else lambda: None
  result = everywhere(mesh, name, own, error)
  return result if mesh.num_processes == 1 else processes.agree(name, result)


def collect(mesh: ReplicaMesh, name: str, value: Any) -> list[Any]:
  """Return the values of all processes of a mesh, by their index.

  Args:
    mesh: mesh of one process or of all.
    name: what is collected, for the message.
    value: value of JSON types of this process.

  Raises:
    ProcessError: if a process did not arrive in time.
  """
  return [value] if mesh.num_processes == 1 else processes.collect(name, value)
