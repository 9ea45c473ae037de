"""Cases of `faults.py` in two processes: lost, stopped, stalled and cut off."""

import contextlib
import signal
import time

from experiments.running.process import exit_codes
from experiments.running.records import records
from experiments.tools import virtual_hosts
from tests.fault_runs import (
  STEPS,
  Fault,
  ended,
  expect,
  expect_equal,
  free_port,
  killed_after,
  newest,
  signal_name,
  wait_for,
)

HEARTBEAT = 12
# A process must know of a lost one within the heartbeat, on a busy machine too.
WITHIN = HEARTBEAT + 8


def _pair(bench, workdir, *more, hosts=None):
  """Start both processes of a run, or resume it."""
  address = hosts[0].name if hosts else 'localhost'
  port = free_port()
  started = []
  for i in range(2):
    command = bench.command(
      workdir,
      f'--coordinator_address={address}:{port}',
      '--num_processes=2',
      f'--process_id={i}',
      f'--heartbeat_seconds={HEARTBEAT}',
      '--join_seconds=120',
      *more,
    )
    if hosts:
      command = hosts[i].command(command)
    started.append(command)
  return [bench.start(command) for command in started]


@contextlib.contextmanager
def _training(bench, workdir, *more, hosts=None):
  """Both processes, once they have saved a checkpoint of their own."""
  before = newest(workdir)
  pair = _pair(bench, workdir, *more, hosts=hosts)
  with killed_after(*pair):
    if not wait_for(lambda: newest(workdir) > before, pair[0]):
      raise Fault(f'it ended early: {ended(pair[0])[1][-1:]}')
    yield pair


def _finish(bench, workdir, *more, hosts=None):
  pair = _pair(bench, workdir, *more, hosts=hosts)
  with killed_after(*pair):
    for process in pair:
      code, lines = ended(process)
      if code:
        raise Fault(f'exit code {code} after the fault: {lines[-1:]}')


def _whole(bench):
  workdir = bench.root / 'pair'
  if not (workdir / records.SUMMARY).exists():
    _finish(bench, workdir)
  return workdir


def lost(bench, given):
  """kill -9 and SIGSTOP of each of two processes."""
  del given
  whole, workdir, said = _whole(bench), bench.root / 'lost', []
  for number in (signal.SIGKILL, signal.SIGSTOP):
    for i in (1, 0):
      with _training(bench, workdir) as pair:
        begun = time.monotonic()
        pair[i].send_signal(number)
        outcome = ended(pair[1 - i])
        took = time.monotonic() - begun
        expect(outcome, exit_codes.LOST, line=f'process {i} was lost: ')
        if took > WITHIN:
          raise Fault(f'process {1 - i} ended only after {took:.0f} s')
        if number == signal.SIGSTOP:
          pair[i].send_signal(signal.SIGCONT)
          expect(ended(pair[i]), exit_codes.LOST, line=' was lost: ')
      said.append(f'{signal_name(number)} of {i} {took:.1f} s')
  _finish(bench, workdir)
  expect_equal(whole, workdir, STEPS)
  return f'seconds to the line that names it: {", ".join(said)}'


def preempted(bench, given):
  """A signal to one of two processes; both save the same step."""
  del given
  whole, workdir = _whole(bench), bench.root / 'preempted'
  steps = []
  for i, number in enumerate((signal.SIGTERM, signal.SIGINT)):
    with _training(bench, workdir) as pair:
      pair[1 - i].send_signal(number)
      code = exit_codes.after_signal(number)
      line = f'{signal_name(number)}: saved step '
      for process in pair:
        expect(ended(process), code, line=line)
      steps.append(str(newest(workdir)))
  _finish(bench, workdir)
  expect_equal(whole, workdir, STEPS)
  return f'both processes saved steps {" and ".join(steps)}'


def stalled(bench, given):
  """A thread of a process that sleeps: alive, but no step ends."""
  del given
  workdir = bench.root / 'stalled'
  # Stopped by a debugger's signal would be `lost`; here the main thread waits.
  pair = _pair(
    bench, workdir, '--stall_seconds=2', '--logger=tests.sleeping:sleeping'
  )
  with killed_after(*pair):
    for process in pair:
      code, lines = ended(process)
      if code != exit_codes.STALLED:
        raise Fault(f'a stalled process ended in code {code}: {lines[-1:]}')
      if not any(line.startswith('Thread ') for line in lines):
        raise Fault('the stacks are missing')
  return 'both processes printed their stacks'


def cut(bench, given):
  """A host whose cable is cut, in a run on two hosts."""
  del given
  reason = virtual_hosts.why_not()
  if reason is not None:
    return f'skipped: {reason}'
  whole, workdir = _whole(bench), bench.root / 'cut'
  with virtual_hosts.network(2) as hosts:
    with _training(bench, workdir, hosts=hosts) as pair:
      begun = time.monotonic()
      hosts[1].cut()
      for i, process in enumerate(pair):
        line = f'process {1 - i} was lost: '
        expect(ended(process), exit_codes.LOST, line=line)
      took = time.monotonic() - begun
    if took > WITHIN:
      raise Fault(f'the processes ended only after {took:.0f} s')
    hosts[1].join()
    _finish(bench, workdir, hosts=hosts)
  expect_equal(whole, workdir, STEPS)
  return f'both processes named the other after {took:.1f} s'
