"""Disturb runs in every way that a cluster does; compare them with whole runs.

  make faults
  python tests/faults.py kill files     only these cases
  python tests/faults.py --kills=5      fewer of them

Not part of the tests, because it takes minutes. After each fault, the run must
end with the records and, bit for bit, with the state of a run that nobody
disturbed, or with one line that states what is wrong. Nothing saved is lost.
"""

import argparse
import pathlib
import shutil
import signal
import sys
import tempfile
import time

if __name__ == '__main__':
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax

from experiments.running.execution import phases
from experiments.running.process import exit_codes
from experiments.running.records import records
from tests import fault_disks, fault_hosts
from tests.fault_runs import (
  HERE,
  STEPS,
  Bench,
  Fault,
  ended,
  expect,
  expect_equal,
  expect_one_line,
  killed_after,
  newest,
  partial,
  seeds,
  signal_name,
  wait_for,
)

SIGNALED = HERE / 'signaled_train.py'
# Steps of the run that is killed, with many more checkpoints than kills.
KILLED_STEPS = 800
OFTEN = '--checkpoint_every=4'


def kill(bench, given):
  """kill -9 at random moments of starting, training and saving."""
  rng, workdir = seeds('kill'), bench.root / 'killed'
  whole = bench.whole(KILLED_STEPS)
  saving = 0
  for attempt in range(given.kills):
    process = bench.start(bench.command(workdir, OFTEN, steps=KILLED_STEPS))
    with killed_after(process):
      before = newest(workdir)
      if attempt % 5:  # otherwise while it starts
        wait_for(lambda b=before: newest(workdir) > b, process)
        if attempt % 2:
          wait_for(lambda: partial(workdir), process)
          time.sleep(rng.uniform(0, 0.05))
        else:
          time.sleep(rng.uniform(0, 0.5))
      else:
        time.sleep(rng.uniform(0.2, 6))
      process.send_signal(signal.SIGKILL)
      code, lines = ended(process)
    if code not in (-signal.SIGKILL, 0):
      raise Fault(f'kill {attempt} ended in code {code}: {lines[-1:]}')
    if newest(workdir) < before:
      raise Fault(f'kill {attempt} lost the checkpoint of step {before}')
    saving += partial(workdir)
  reached = newest(workdir)
  bench.finish(workdir, steps=KILLED_STEPS)
  expect_equal(whole, workdir, KILLED_STEPS)
  return f'{given.kills} kills, {saving} in a checkpoint, up to step {reached}'


def signals(bench, given):
  """SIGTERM and SIGINT in each phase."""
  del given
  whole, rng, done = bench.whole(), seeds('signals'), 0
  for number in (signal.SIGTERM, signal.SIGINT):
    code = exit_codes.after_signal(number)
    for name in phases.ALL:
      workdir = bench.root / f'signaled-{name}-{signal_name(number)}'
      fault = f'{name}:{int(number)}:{rng.uniform(0, 0.02)}'
      command = bench.command(workdir, program=SIGNALED)
      outcome = ended(bench.start(command, {'PRSGD_JAX_FAULT': fault}))
      expect_one_line(outcome, code, line=f'train.py: {signal_name(number)}: ')
      if name not in (phases.START, phases.COMPILE) and not newest(workdir):
        raise Fault(f'{signal_name(number)} in {name}: nothing was saved')
      bench.finish(workdir)
      expect_equal(whole, workdir, STEPS)
      done += 1
    # While Python imports: nothing is written, and the same command starts.
    workdir = bench.root / f'signaled-import-{signal_name(number)}'
    process = bench.start(bench.command(workdir))
    with killed_after(process):
      time.sleep(1)
      process.send_signal(number)
      expect(ended(process), code, line=signal_name(number))
    done += 1
  return f'{done} signals'


def stop(bench, given):
  """SIGSTOP and SIGCONT of one process, which has not stalled."""
  del given
  workdir = bench.root / 'stopped'
  process = bench.start(bench.command(workdir, '--stall_seconds=3'))
  with killed_after(process):
    wait_for(lambda: newest(workdir) >= 16, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    code, lines = ended(process)
  if code:
    raise Fault(f'it ended in code {code}: {lines[-1:]}')
  expect_equal(bench.whole(), workdir, STEPS)
  return 'continued after 8 s, with a limit of 3 s'


def two(bench, given):
  """Two processes in one directory."""
  del given
  workdir = bench.root / 'two'
  first = bench.start(bench.command(workdir))
  with killed_after(first):
    wait_for(lambda: newest(workdir) >= 8, first)
    first.send_signal(signal.SIGSTOP)  # it must not finish meanwhile
    for _ in range(2):
      outcome = bench.run(workdir)
      expect_one_line(outcome, exit_codes.ERROR, line=' is in use by process ')
    first.send_signal(signal.SIGCONT)
    code, lines = ended(first)
  if code:
    raise Fault(f'the first one ended in code {code}: {lines[-1:]}')
  expect_equal(bench.whole(), workdir, STEPS)
  return 'the second was refused twice'


def files(bench, given):
  """Each file of a checkpoint deleted, truncated, and with a bit flipped."""
  del given
  made = bench.root / 'files-made'
  steps = 80
  bench.finish(made, steps=steps)
  directory = pathlib.Path(records.CHECKPOINTS, str(newest(made)))
  inside = sorted(p for p in (made / directory).rglob('*') if p.is_file())
  damages = {
    'deleted': lambda path: path.unlink(),
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:-1]),
    'flipped': _flip,
  }
  for path in inside:
    name = path.relative_to(made)
    for what, damage in damages.items():
      workdir = bench.root / 'files'
      shutil.rmtree(workdir, ignore_errors=True)
      shutil.copytree(made, workdir)
      damage(workdir / name)
      outcome = fault_disks.call_train(
        '--resume', f'--workdir={workdir}', f'--num_steps={steps + 40}'
      )
      where = f'{workdir / directory}'
      if outcome.code != exit_codes.ERROR or where not in outcome.err:
        raise Fault(f'{name} {what}: {outcome.code}, {outcome.err!r}')
      if outcome.err.count('\n') != 1:
        raise Fault(f'{name} {what}: not one line: {outcome.err!r}')
  # What the line advises: the older checkpoint is whole.
  shutil.rmtree(workdir / directory)
  bench.finish(workdir, f'--num_steps={steps + 40}')
  whole = bench.root / 'files-whole'
  bench.finish(whole, steps=steps + 40)
  expect_equal(whole, workdir, steps + 40)
  return f'{len(inside)} files, {len(damages)} damages of each'


def _flip(path):
  data = bytearray(path.read_bytes() or b'\0')
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


CASES = {
  'kill': kill,
  'signals': signals,
  'stop': stop,
  'two': two,
  'files': files,
  'disk': fault_disks.disk,
  'read_only': fault_disks.read_only,
  'lost': fault_hosts.lost,
  'preempted': fault_hosts.preempted,
  'stalled': fault_hosts.stalled,
  'cut': fault_hosts.cut,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=str(__doc__).split('\n', 1)[0])
  names = ', '.join(CASES)
  parser.add_argument('cases', nargs='*', help=f'of {names}; default: all')
  parser.add_argument('--kills', type=int, default=50)
  given = parser.parse_args()
  unknown = set(given.cases) - set(CASES)
  if unknown:
    parser.error(f'no case {", ".join(unknown)}; use some of {names}')
  # For the case in this process.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  root = pathlib.Path(tempfile.mkdtemp(prefix='faults-'))
  bench, failed = Bench(root), []
  for name in given.cases or CASES:
    begun = time.monotonic()
    try:
      said = CASES[name](bench, given)
    except Fault as fault:
      failed.append(name)
      said = f'FAULT: {fault}'
    print(f'{name}: {said} ({time.monotonic() - begun:.0f} s)', flush=True)
  if failed:
    sys.exit(f'faults in {", ".join(failed)}; the runs are in {root}')
  shutil.rmtree(root)


if __name__ == '__main__':
  main()
