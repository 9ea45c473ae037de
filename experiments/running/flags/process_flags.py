"""Flags of a run in several processes, and how a process joins the others.

JAX's runtime does the work. It ends a process that cannot join with a stack
trace of C++ or a segmentation fault, so `join` checks the address itself, and
ends the process with one line after --join_seconds.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import socket
import threading
import time
from typing import Any

from absl import flags
import jax

from experiments.running.process import exit_codes, messages, peers, signals
from prsgd_jax.engine import processes

flags.DEFINE_enum(
  'distributed',
  None,
  ['auto', 'slurm', 'ompi', 'mpi4py'],
  'Find the processes of the run in the environment. auto: SLURM, Open MPI, '
  'Kubernetes or a TPU slice, as JAX finds them. Default: one process, unless '
  '--coordinator_address is given.',
)
flags.DEFINE_string(
  'coordinator_address',
  None,
  'HOST:PORT on which process 0 listens and which all processes can reach.',
)
flags.DEFINE_integer('num_processes', None, 'Number of processes, >= 1.')
flags.DEFINE_integer(
  'process_id',
  None,
  'Index of this process, 0 to --num_processes - 1. Process 0 writes the files '
  'of the run and prints its progress.',
)
flags.DEFINE_list(
  'local_device_ids',
  None,
  'Indices of the GPUs of this process, such as 0,1. Default: all that are '
  'visible, or one for each task of SLURM or Open MPI.',
)
flags.DEFINE_integer(
  'join_seconds', 300, 'Seconds to wait for the other processes at the start.'
)
flags.DEFINE_integer(
  'heartbeat_seconds',
  100,
  'Seconds without a sign of life after which a process counts as lost.',
)

BY_HAND = ('coordinator_address', 'num_processes', 'process_id')
NAMES = (
  *BY_HAND, 'distributed', 'local_device_ids', 'join_seconds',
  'heartbeat_seconds',
)  # fmt: skip
# Beyond the limit that this module enforces, so that its message comes first.
_LATER = 30
_RETRY_SECONDS = 0.2


def given(values: flags.FlagValues) -> list[str]:
  """Return the flags of this module on the command line, to repeat them.

  They are empty under launch.py, which gives each start others.
  """
  found: list[str] = []
  if signals.is_launched():
    return found
  for name in NAMES:
    flag = values[name]
    if flag.present and flag.value is not None:
      value = flag.value
      text = ','.join(value) if isinstance(value, list) else str(value)
      found.append(f'--{name}={text}')
  return found


def refuse(values: flags.FlagValues, why: str) -> None:
  """Raise ValueError if a flag of several processes is given.

  Args:
    values: flags of the program.
    why: what the program does, for the message.
  """
  found = [f'--{name}' for name in NAMES if values[name].present]
  if found:
    raise ValueError(f'{why}; leave out {", ".join(found)}')


def join(values: flags.FlagValues) -> None:
  """Join the other processes of the run, if there are others.

  Call this before any use of JAX's devices, and before importing a user's
  module, which may use them.

  Args:
    values: flags of the program.

  Raises:
    ValueError: if the flags are incomplete or out of range, or the environment
      has no cluster.
  """
  _check(values)
  by_hand = values['coordinator_address'].value is not None
  if not by_hand and values.distributed is None:
    return
  address, process = values.coordinator_address, values.process_id
  limit = time.monotonic() + values.join_seconds
  if by_hand:
    _check_address(address, process, limit)
  with _one_line_after(limit, values.join_seconds):
    _initialize(values, by_hand)
  peers.join(values.heartbeat_seconds)
  if not processes.is_first():
    messages.only_errors(processes.index())


def _check(values: flags.FlagValues) -> None:
  """Raise ValueError unless the flags name a process, or none is given."""
  missing = [name for name in BY_HAND if values[name].value is None]
  if values.distributed is not None and len(missing) < len(BY_HAND):
    raise ValueError(
      f'--distributed={values.distributed} finds the processes by itself; '
      'leave out --coordinator_address, --num_processes and --process_id'
    )
  if 0 < len(missing) < len(BY_HAND):
    raise ValueError(
      'a run in several processes requires --coordinator_address, '
      f'--num_processes and --process_id; add --{", --".join(missing)}'
    )
  if not missing:
    _check_numbers(values.num_processes, values.process_id)
  for name in ('join_seconds', 'heartbeat_seconds'):
    seconds: Any = values[name].value
    if seconds < 1:
      raise ValueError(f'--{name} must be >= 1, got {seconds}')
  if not all(text.isdecimal() for text in values.local_device_ids or ()):
    raise ValueError(
      '--local_device_ids must be indices of devices, such as 0,1, got '
      f'{",".join(values.local_device_ids)}'
    )


def _check_numbers(num_processes: int, process_id: int) -> None:
  if num_processes < 1:
    raise ValueError(f'--num_processes must be >= 1, got {num_processes}')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'--process_id must be 0 to {num_processes - 1} for --num_processes='
      f'{num_processes}, got {process_id}'
    )


def _check_address(address: str, process: int, limit: float) -> None:
  """Raise ValueError unless process 0 can listen, or the others reach it."""
  host, _, port = address.rpartition(':')
  host = host.strip('[]')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(
      f'--coordinator_address must be HOST:PORT, such as 10.0.0.1:8476, got '
      f'{address}'
    )
  if process == 0:
    _check_free(int(port))
  else:
    _wait_for(host, int(port), limit)


def _check_free(port: int) -> None:
  """Raise ValueError if another program listens on a port."""
  kind = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
  try:
    with socket.socket(kind, socket.SOCK_STREAM) as trial:
      # As JAX does, because the port of a run that ended is free again.
      trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      trial.bind(('', port))
  except OSError as error:
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
      raise ValueError(
        f'--coordinator_address: process 0 cannot listen on port {port} '
        f'({error.strerror}); pass another port to all processes'
      ) from error


def _wait_for(host: str, port: int, limit: float) -> None:
  """Wait until process 0 listens; raise ValueError when the time is over."""
  started = time.monotonic()
  while True:
    try:
      seconds = max(0.1, min(5.0, limit - time.monotonic()))
      socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
      if time.monotonic() < limit:
        time.sleep(_RETRY_SECONDS)
        continue
      raise ValueError(
        f'process 0 was not reached at {host}:{port} within '
        f'{limit - started:.0f} s ({error.strerror or error}); start it, or '
        'correct --coordinator_address'
      ) from error
    return


@contextlib.contextmanager
def _one_line_after(limit: float, seconds: int) -> Iterator[None]:
  """End the process with one line if the block takes too long.

  By a thread, because JAX ends the process after its own limit.
  """

  def end() -> None:
    messages.end_line(
      f'error: not all processes joined within {seconds} s; start '
      'each of them, with one --num_processes, or raise --join_seconds'
    )
    os._exit(exit_codes.ERROR)

  timer = threading.Timer(max(0.0, limit - time.monotonic()), end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _initialize(values: flags.FlagValues, by_hand: bool) -> None:
  methods = {'auto': None} if not by_hand else {None: 'deactivate'}
  ids = values.local_device_ids
  arguments: dict[str, Any] = {
    'local_device_ids': None if ids is None else list(map(int, ids)),
    'cluster_detection_method': methods.get(
      values.distributed, values.distributed
    ),
    'initialization_timeout': values.join_seconds + _LATER,
    'heartbeat_timeout_seconds': values.heartbeat_seconds,
  }
  if by_hand:
    arguments |= {name: values[name].value for name in BY_HAND}
  # Its handler of SIGTERM would replace the one of `signals`, and it knows no
  # other signal; `peers` agrees on the step.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(**arguments)
  # Every Exception, because the detection reads variables, files and servers.
  except Exception as error:
    what = ' '.join(str(error).split()) or type(error).__name__
    if 'should be defined' in what:
      what = (
        'no SLURM, Open MPI, Kubernetes or TPU slice was found; give '
        '--coordinator_address, --num_processes and --process_id'
      )
    flag = 'coordinator_address' if by_hand else 'distributed'
    raise ValueError(f'--{flag}={values[flag].value}: {what}') from error
