"""Print a line of our own before JAX's runtime aborts the process.

The runtime is C++. When the process that coordinates the run is gone, it prints
a stack and calls `abort` within milliseconds, from another thread. JAX has
no working callback for that: the one of its client raises `std::bad_cast`.

So the signal of `abort` is handled. That is safe here, unlike in most signal
handlers, because the aborting thread calls it as a function, outside of Python.
"""

from collections.abc import Callable
import ctypes
import signal
import socket
from typing import Any

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_DEFAULT = ctypes.cast(0, _HANDLER)
_kept: list[Any] = []  # because C keeps no reference to a handler


def before(explain: Callable[[], object]) -> None:
  """Call a function when the process aborts; then it aborts.

  Args:
    explain: function that may end the process in another way.
  """
  set_handler = ctypes.CDLL(None).signal
  set_handler.argtypes = (ctypes.c_int, _HANDLER)
  set_handler.restype = ctypes.c_void_p

  def on_abort(number: int) -> None:
    set_handler(number, _DEFAULT)  # first, because `explain` may abort, too
    explain()

  _kept[:] = [_HANDLER(on_abort)]
  set_handler(signal.SIGABRT, _kept[0])


def is_reachable(address: str, seconds: float = 3.0) -> bool:
  """Return whether a process listens at an address.

  Args:
    address: HOST:PORT.
    seconds: how long to wait for an answer.
  """
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host.strip('[]'), int(port)), seconds).close()
  except (OSError, ValueError):
    return False
  return True
