"""Run one program in a process on each of several simulated hosts."""

from collections.abc import Sequence
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from experiments.tools import virtual_hosts

PORT = 8476


def check() -> None:
  """Raise ValueError if this machine cannot simulate hosts."""
  reason = virtual_hosts.why_not()
  if reason is not None:
    raise ValueError(
      f'hosts cannot be simulated here ({reason}); start the program on '
      'real hosts by launch.py --hosts=a,b,c,d'
    )


def run(
  program: pathlib.Path,
  arguments: Sequence[str],
  *,
  num_hosts: int,
  rate: float,
  seconds: float,
) -> None:
  """Run a program that joins the other processes, and wait for its end.

  Process 0 prints to this terminal.

  Args:
    program: file of the program, which has the flags of `process_flags`.
    arguments: its other flags.
    num_hosts: number of hosts, with one process on each.
    rate: rate of the links in Mb/s.
    seconds: time after which the processes are ended.

  Raises:
    ValueError: if a process fails, or the time is over.
  """
  deadline = time.monotonic() + seconds
  with (
    tempfile.TemporaryDirectory() as logs,
    virtual_hosts.network(num_hosts, rate=f'{rate:g}mbit') as hosts,
  ):
    common = [
      sys.executable, str(program), *arguments,
      f'--coordinator_address={hosts[0].address}:{PORT}',
      f'--num_processes={num_hosts}',
    ]  # fmt: skip
    started = [
      _start(host, i, common, pathlib.Path(logs, str(i)))
      for i, host in enumerate(hosts)
    ]
    try:
      failed = _wait(started, deadline)
    finally:
      for process in started:
        process.kill()
        process.wait()
    if failed is not None:
      last = pathlib.Path(logs, str(failed)).read_text().strip().splitlines()
      raise ValueError(
        f'the process on host {failed} failed: {"".join(last[-1:])}'
      )


def _start(
  host: virtual_hosts.Host,
  index: int,
  common: Sequence[str],
  output: pathlib.Path,
) -> subprocess.Popen[bytes]:
  """Start the program on a host; process 0 prints to this terminal."""
  command = [*common, f'--process_id={index}']
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  with open(output, 'wb') as file:
    return subprocess.Popen(
      host.command(command), env=environment, stdin=subprocess.DEVNULL,
      stdout=None if index == 0 else file, stderr=file,
    )  # fmt: skip


def _wait(
  started: Sequence[subprocess.Popen[bytes]], deadline: float
) -> int | None:
  """Return the process that failed first; None if all succeeded."""
  while time.monotonic() < deadline:
    codes = [process.poll() for process in started]
    for i, code in enumerate(codes):
      if code:
        return i
    if all(code == 0 for code in codes):
      return None
    time.sleep(0.1)
  raise ValueError(
    'the measurement took too long; measure less, or at a higher rate'
  )
