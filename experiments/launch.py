r"""Start a program in several processes, on this machine or on several hosts.

  python experiments/launch.py --num_processes=2 -- experiments/train.py \
    --algorithm=pr_sgd --period=4 --workdir=runs/two

The program follows after `--`. Each of its processes receives the flags
--coordinator_address, --num_processes and --process_id, and the number of the
process precedes each line of output. When one process fails, all end, and the
first error is the last line. A signal is passed on to all processes.

With --max_restarts, a run that lost a process resumes from its newest complete
checkpoint:

  python experiments/launch.py --num_processes=2 --max_restarts=3 -- \
    experiments/train.py --algorithm=ssgd --workdir=runs/robust

With --hosts=a,b, one process runs on each host. The hosts need ssh without a
password, the same files in --remote_directory, and a shared directory for the
runs.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import signals

if __name__ == '__main__':
  signals.watch()  # before the other imports, which take seconds

from collections.abc import Sequence
import os
import socket
import time
from typing import Any

from absl import flags

from experiments.running.flags import cli, process_flags
from experiments.running.process import exit_codes, jobs, launching, messages
from experiments.running.records import records, slugs

FLAGS = flags.FLAGS

for _name in process_flags.BY_HAND[:2]:  # not --process_id
  flags.declare_key_flag(_name)
flags.DEFINE_integer(
  'devices_per_process',
  None,
  'Number of devices of each process: GPUs, or on a CPU simulated devices. '
  'Default: an equal share of the visible GPUs, otherwise one CPU device.',
)
flags.DEFINE_integer(
  'max_restarts',
  0,
  'Number of times that the processes are started again after a failure, >= 0. '
  'An error that the program explained (exit code 1) is not repeated.',
)
flags.DEFINE_float(
  'grace_seconds',
  15.0,
  'Seconds that the other processes have to end by themselves after one of '
  'them failed.',
)
flags.DEFINE_list(
  'hosts',
  None,
  'Names for ssh, one for each process, such as a,b. Process 0 runs on the '
  'first, and the others must reach it by that name. Default: this machine.',
)
flags.DEFINE_string(
  'remote_directory',
  None,
  'Directory on the --hosts to run the program in. Default: the current one.',
)
flags.DEFINE_string(
  'remote_python', None, 'Python on the --hosts. Default: the path of this one.'
)

# Of process 0 on one of several hosts, where no free port can be asked for.
PORT = 8476
# Variables that --hosts receive from here.
_PASSED_ON = ('JAX_', 'XLA_')
# Exit codes of errors that another start would repeat.
_EXPLAINED = (1, 2)


def main(*command: str) -> None:
  with cli.one_line_errors(ValueError):
    _check(command)
    environments = _environments(_num_processes())
    program = list(command)
    if FLAGS.max_restarts and _is_train(program):
      program = _with_workdir(program)
  for left in range(FLAGS.max_restarts, -1, -1):
    again = _is_train(program) and left < FLAGS.max_restarts
    arguments = _resuming(program) if again else program
    ended = launching.run_together(
      _members(arguments, environments), grace_seconds=FLAGS.grace_seconds
    )
    if not ended.code:
      return
    if signals.requested() is not None:  # the processes printed what they saved
      sys.exit(ended.code)
    if not left or ended.code in _EXPLAINED:
      # So that a scheduler requeues what another start may finish.
      killed = ended.code > 128 and ended.code != exit_codes.INTERRUPTED
      code = exit_codes.LOST if killed else ended.code
      cli.fail(launching.describe(ended), code)
    messages.warn(
      f'{launching.describe(ended)}; starting all processes again, '
      f'{left - 1} restarts left'
    )


def _check(command: Sequence[str]) -> None:
  """Raise ValueError unless the flags fit together and a program follows."""
  if not command:
    raise ValueError(
      'expected a program after --, such as -- experiments/train.py '
      '--algorithm=ssgd'
    )
  for name in ('workdir', 'data_dir'):
    if FLAGS[name].present:
      raise ValueError(f'--{name} is of the program; pass it after --')
  for name in ('max_restarts', 'grace_seconds'):
    value: Any = FLAGS[name].value
    if value < 0:
      raise ValueError(f'--{name} must be >= 0, got {value}')
  devices = FLAGS.devices_per_process
  if devices is not None and devices < 1:
    raise ValueError(f'--devices_per_process must be >= 1, got {devices}')
  if not FLAGS.hosts:
    for name in ('remote_directory', 'remote_python'):
      if FLAGS[name].present:
        raise ValueError(f'--{name} does nothing without --hosts')


def _num_processes() -> int:
  """Return the number of processes.

  Raises:
    ValueError: if it is missing, less than 1, or not one for each host.
  """
  number, hosts = FLAGS.num_processes, FLAGS.hosts or ()
  if number is None and not hosts:
    raise ValueError('pass --num_processes, or --hosts')
  if number is None:
    return len(hosts)
  if number < 1:
    raise ValueError(f'--num_processes must be >= 1, got {number}')
  if hosts and number != len(hosts):
    raise ValueError(
      f'--num_processes={number} must be one for each of the {len(hosts)} '
      '--hosts; leave it out'
    )
  return number


def _environments(num_processes: int) -> list[dict[str, str]]:
  """Return the variables that give each process its devices.

  Raises:
    ValueError: if there are too few GPUs.
  """
  each = FLAGS.devices_per_process
  simulated = {} if each is None else {'JAX_NUM_CPU_DEVICES': str(each)}
  on_cpu = os.environ.get('JAX_PLATFORMS') == 'cpu'
  gpus = [] if on_cpu or FLAGS.hosts else jobs.visible_gpus()
  if not gpus:
    return [simulated] * num_processes
  each = each or max(1, len(gpus) // num_processes)
  if each * num_processes > len(gpus):
    raise ValueError(
      f'{num_processes} processes with {each} GPU(s) each require '
      f'{each * num_processes}, got {len(gpus)}; start fewer processes, or set '
      'JAX_PLATFORMS=cpu'
    )
  return [
    {'CUDA_VISIBLE_DEVICES': ','.join(gpus[i * each : (i + 1) * each])}
    for i in range(num_processes)
  ]


def _members(
  program: Sequence[str], environments: Sequence[dict[str, str]]
) -> list[launching.Member]:
  """Return the processes to start, which meet at a new address."""
  hosts = FLAGS.hosts or [None] * len(environments)
  python = sys.executable
  shared = {
    'PYTHONUNBUFFERED': '1',
    **signals.launched_by(_own_command(), program),
  }
  if FLAGS.hosts:
    python = FLAGS.remote_python or python
    shared |= {n: v for n, v in os.environ.items() if n.startswith(_PASSED_ON)}
  runs_in_python = program[0] == '-m' or program[0].endswith('.py')
  start = [python, *program] if runs_in_python else list(program)
  address = FLAGS.coordinator_address or _address(hosts[0])
  return [
    launching.Member(
      [
        *start,
        f'--coordinator_address={address}',
        f'--num_processes={len(environments)}',
        f'--process_id={i}',
      ],
      {**shared, **environment},
      host,
      FLAGS.remote_directory or os.getcwd(),
    )
    for i, (host, environment) in enumerate(zip(hosts, environments))
  ]


def _address(host: str | None) -> str:
  """Return the address of process 0; on this machine, with a free port."""
  if host is not None:
    return f'{host.rpartition("@")[2]}:{PORT}'
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def _own_command() -> list[str]:
  """Return the command of this launch up to `--`."""
  words = list(sys.orig_argv)
  return words[: words.index('--') + 1] if '--' in words else words


def _is_train(program: Sequence[str]) -> bool:
  """Whether a program is train.py, which has --resume."""
  return pathlib.Path(program[0]).name in ('train.py', 'prsgd-train') or (
    list(program[:2]) == ['-m', 'experiments.train']
  )


def _workdir(program: Sequence[str]) -> str | None:
  """Return the --workdir of a program, also from its flag files."""
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  try:
    values(list(program), known_only=True)
  except flags.Error:  # which the program explains
    return None
  return values.workdir


def _with_workdir(program: Sequence[str]) -> list[str]:
  """Add a new directory unless the program has one, to find the run again."""
  if _workdir(program) is not None:
    return list(program)
  name = time.strftime('%Y%m%d-%H%M%S-launch')
  made = slugs.make_directory(pathlib.Path('runs'), name)
  return [*program, f'--workdir={made}']


def _resuming(program: Sequence[str]) -> list[str]:
  """Add --resume if the directory of the run holds it."""
  workdir = _workdir(program)
  place = pathlib.Path(FLAGS.remote_directory or '.', workdir or '')
  if workdir is None or not (place / records.CONFIG).exists():
    return list(program)
  return [*program, '--resume']


if __name__ == '__main__':
  cli.run(main)
