"""Trains a model on N replicas with one algorithm.

For example, PR-SGD with an average every 4 steps on the optical digits:

  python experiments/train.py --algorithm=pr_sgd --period=4

which is what it does without flags. The options of an algorithm are in

  python experiments/train.py --algorithm=pr_sgd --help

Named runs are presets:

  python experiments/train.py --flagfile=experiments/presets/digits_pr_sgd.flags
"""

import pathlib
import time

from absl import flags

from experiments import (
  cli,
  config,
  data,
  dotted,
  experiment,
  loggers,
  network,
  records,
  runs,
)
from experiments.parts import prepare
from prsgd_jax.checkpoints import CheckpointError

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(config)
flags.DEFINE_bool('resume', False, 'Go on with the run in --workdir.')


def main() -> None:
  with cli.one_line_errors(ValueError):
    # Before a module of the user's own may look at them.
    cli.make_fake_devices(FLAGS.num_devices)
    filled_in = config.fill_in(FLAGS)
    run_config = config.from_flags(FLAGS, algorithm=FLAGS.algorithm)
    intervals = runs.Intervals.from_flags(FLAGS)
    more_loggers = loggers.load(FLAGS.logger)
    workdir = _workdir(run_config)
    dataset = data.load(run_config, FLAGS.data_dir)
    machines = network.from_flags(FLAGS, run_config.num_replicas)
    parts = experiment.assemble(
      run_config, dataset, FLAGS.num_devices, machines
    )
    runs.open_workdir(parts, workdir, intervals, resume=FLAGS.resume)
  if filled_in:
    print(f'no --algorithm is given, so that it is {filled_in}')
  print(f'{run_config.label()}: {parts.mesh}, writing to {workdir}')
  kinds = (CheckpointError, runs.NonFinite, dotted.OwnError)
  with (
    cli.one_line_errors(*kinds),
    cli.one_line_write_errors(workdir, f'--workdir={workdir} --resume'),
    dotted.named_errors(*run_config.own()),
  ):
    summary = runs.execute(
      prepare(parts),
      workdir,
      intervals,
      progress=FLAGS.progress,
      more_loggers=more_loggers,
    )
  print(records.format_summary(summary, workdir))


def _workdir(run_config: config.RunConfig) -> pathlib.Path:
  if FLAGS.workdir is None:
    if FLAGS.resume:
      raise ValueError('--resume needs --workdir, the directory of the run')
    now = time.strftime('%Y%m%d-%H%M%S')
    name = f'{now}-{run_config.dataset}-{run_config.slug()}'
    return pathlib.Path('runs') / name
  workdir = pathlib.Path(FLAGS.workdir)
  if FLAGS.resume and not (workdir / records.CONFIG).exists():
    raise ValueError(f'there is no run in {workdir}; leave out --resume')
  return workdir


if __name__ == '__main__':
  cli.run(main)
