"""Train a model on N replicas with one algorithm.

By default it runs PR-SGD with an average every 4 steps on the optical digits:

  python experiments/train.py --algorithm=pr_sgd --period=4

It writes records, checkpoints and a summary to --workdir. Resume an interrupted
run with --workdir=DIR --resume; the result is bit-identical.

Print the options of an algorithm:

  python experiments/train.py --algorithm=pr_sgd --help

Run a preset, a file of flags:

  python experiments/train.py --flagfile=experiments/presets/digits_pr_sgd.flags
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import imports, signals

if __name__ == '__main__':
  signals.watch()  # before the other imports, which take seconds
  imports.begin()

import contextlib
import time

from absl import flags

from experiments.running.execution import (
  experiment,
  keeping,
  runs,
  sizes,
  warm_start,
)
from experiments.running.execution.finite import NonFinite
from experiments.running.execution.intervals import Intervals
from experiments.running.flags import (
  cli,
  config,
  data,
  dotted,
  network,
  process_flags,
  saved_flags,
  speed_flags,
)
from experiments.running.flags.run_config import FIT_REPLICAS
from experiments.running.logs import loggers
from experiments.running.process import age, process_zero
from experiments.running.records import records, slugs
from experiments.running.records.json_files import DamagedFile
from prsgd_jax.data.sources import DataError
from prsgd_jax.engine.checkpoints import CheckpointError

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(speed_flags)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(config)
flags.adopt_module_key_flags(process_flags)
flags.DEFINE_bool(
  'resume',
  False,
  'Resume the interrupted run in --workdir with its saved flags. Only these '
  'flags may change: --num_epochs, --num_steps, --log_every, --eval_every, '
  '--checkpoint_every, --keep, --logger, --block, --map_by, --num_devices, '
  '--num_replicas (and with it the flags with a number for each replica), '
  '--data_dir, --stall_seconds, --stream_processes and --progress.',
)
flags.DEFINE_list(
  'survivors',
  None,
  'Saved replicas that stay, such as 0,1,4,5, when --resume changes '
  '--num_replicas. It matters only to algorithms whose replicas keep something '
  'of their own then; all others average the saved replicas, lost ones '
  'included. Default: the first ones.',
)


def main() -> None:
  with contextlib.ExitStack() as held:
    _train(held)


def _train(held: contextlib.ExitStack) -> None:
  with cli.one_line_errors(ValueError):
    process_flags.join(FLAGS)
    tuned = speed_flags.apply(FLAGS)
    if FLAGS.resume:
      workdir = _resumed_workdir()
      held.enter_context(runs.hold(workdir))
      saved_flags.restore(FLAGS, workdir)
    # Before importing a user's module, because it may initialize the devices.
    cli.make_fake_devices(FLAGS.num_devices)
    filled_in = config.fill_in(FLAGS)
    run_config = config.from_flags(FLAGS, algorithm=FLAGS.algorithm)
    may_change: tuple[str, ...] = ()
    if FLAGS.resume:
      run_config = sizes.planned(run_config, workdir)
      may_change = ('num_replicas', *FIT_REPLICAS)
    survivors = sizes.survivors_from_flags(FLAGS)
    intervals = Intervals.from_flags(FLAGS)
    keep = keeping.from_flags(FLAGS)
    stall_seconds = runs.stall_seconds_from_flags(FLAGS)
    more_loggers = loggers.load(FLAGS.logger)
    dataset = data.load(run_config, FLAGS.data_dir)
    machines = network.from_flags(FLAGS, run_config.num_replicas)
    parts = experiment.assemble(
      run_config,
      dataset,
      FLAGS.num_devices,
      machines,
      map_by=FLAGS.map_by,
      block=FLAGS.block,
    )
    resumed = workdir if FLAGS.resume else None
    parts, start = warm_start.plan(parts, resumed, FLAGS)
    if not FLAGS.resume:
      workdir = _new_workdir(run_config)
      held.enter_context(runs.hold(workdir))
    runs.open_workdir(
      parts,
      workdir,
      intervals,
      resume=FLAGS.resume,
      may_change=may_change,
    )
  joined = process_flags.given(FLAGS)
  again = signals.again('--resume', f'--workdir={workdir}', *joined)
  held.enter_context(signals.exit_when_stopped(again))
  if filled_in:
    print(f'default: {filled_in}')
  print(f'{run_config.label()}: {parts.placement()}, writing to {workdir}')
  print(tuned, end='')
  if run_config.sizes:
    print(f'replicas: {records.format_sizes(run_config.sizes)}')
  kinds = (CheckpointError, DamagedFile, DataError, NonFinite, dotted.OwnError)
  with (
    cli.one_line_errors(*kinds),
    cli.one_line_write_errors(workdir, f'--workdir={workdir} --resume'),
    dotted.named_errors(*run_config.own()),
  ):
    summary = runs.execute(
      parts,
      workdir,
      intervals,
      start=start,
      progress=FLAGS.progress,
      more_loggers=more_loggers,
      keep=keep,
      stall_seconds=stall_seconds,
      survivors=survivors,
      age=age.seconds,
    )
  print(records.format_summary(summary, workdir))


def _resumed_workdir() -> pathlib.Path:
  if FLAGS.workdir is None:
    raise ValueError('--resume requires --workdir, the directory of the run')
  workdir = pathlib.Path(FLAGS.workdir)
  # Before the lock, which would make the directory.
  if not process_zero.decide('the run', (workdir / records.CONFIG).exists):
    raise ValueError(f'{workdir} holds no run; leave out --resume')
  return workdir


def _new_workdir(run_config: config.RunConfig) -> pathlib.Path:
  if FLAGS.workdir is not None:
    return pathlib.Path(FLAGS.workdir)
  now = time.strftime('%Y%m%d-%H%M%S')
  name = f'{now}-{run_config.dataset}-{run_config.slug()}-seed{run_config.seed}'
  root = pathlib.Path('runs')
  made = process_zero.decide(
    'the directory of the run', lambda: str(slugs.make_directory(root, name))
  )
  return pathlib.Path(made)


if __name__ == '__main__':
  cli.run(main)
