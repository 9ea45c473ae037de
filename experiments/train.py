"""Trains a model on N replicas with one algorithm.

For example, PR-SGD with an average every 4 steps on the optical digits:

  python experiments/train.py --algorithm=pr_sgd --period=4

Named runs are presets:

  python experiments/train.py --flagfile=experiments/presets/digits_pr_sgd.flags
"""

import pathlib
import time

from absl import flags

from experiments import cli, config, experiment, network, records, runs
from prsgd_jax.checkpoints import CheckpointError
from prsgd_jax.datasets import load_dataset

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(config)
flags.DEFINE_bool('resume', False, 'Go on with the run in --workdir.')


def main() -> None:
  with cli.one_line_errors(ValueError):
    run_config = config.from_flags(FLAGS, algorithm=FLAGS.algorithm)
    intervals = runs.Intervals.from_flags(FLAGS)
    workdir = _workdir(run_config)
    cli.make_fake_devices(FLAGS.num_devices)
    dataset = load_dataset(run_config.dataset, FLAGS.data_dir)
    machines = network.from_flags(FLAGS, run_config.num_replicas)
    parts = experiment.assemble(
      run_config, dataset, FLAGS.num_devices, machines
    )
    runs.open_workdir(parts, workdir, intervals, resume=FLAGS.resume)
  print(f'{run_config.label()}: {parts.mesh}, writing to {workdir}')
  with cli.one_line_errors(CheckpointError, runs.NonFinite):
    summary = runs.execute(
      experiment.prepare(parts), workdir, intervals, progress=FLAGS.progress
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
