r"""Trains with several algorithms on one task: one table, one figure.

Every --run is an algorithm with its options; the other flags are those of
train.py and hold for all runs:

  python experiments/compare.py --run=ssgd --run=pr_sgd,period=4 \
    --run=one_shot_averaging --workdir=runs/first

writes runs/first/comparison.md, .json and .png and a directory for each run. A
comparison that was stopped goes on when it is started again; runs that are done
are read, not repeated.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

from absl import flags
import matplotlib
from matplotlib import pyplot as plt

from experiments import (
  algorithm_flags,
  cli,
  config,
  experiment,
  network,
  records,
  runs,
)
from prsgd_jax.checkpoints import CheckpointError
from prsgd_jax.datasets import load_dataset

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(config)
flags.DEFINE_multi_string(
  'run', [], 'An algorithm and its options, such as pr_sgd,period=4; repeated.'
)


def main() -> None:
  with cli.one_line_errors(ValueError):
    intervals = runs.Intervals.from_flags(FLAGS)
    if FLAGS.workdir is None:
      raise ValueError('compare.py needs --workdir, a directory to write to')
    run_configs = parse_runs(FLAGS.run)
    cli.make_fake_devices(FLAGS.num_devices)
    dataset = load_dataset(run_configs[0].dataset, FLAGS.data_dir)
    machines = network.from_flags(FLAGS, run_configs[0].num_replicas)
    assembled = [  # before the first one runs
      experiment.assemble(run_config, dataset, FLAGS.num_devices, machines)
      for run_config in run_configs
    ]
  workdir = pathlib.Path(FLAGS.workdir)
  print(f'{len(run_configs)} runs, written to {workdir}')
  summaries, histories = [], []
  for parts in assembled:
    run_dir = workdir / parts.config.slug()
    summaries.append(_run(parts, run_dir, intervals))
    histories.append(records.read_records(run_dir))
  table = format_table(summaries)
  (workdir / 'comparison.md').write_text(table)
  whole = json.dumps(summaries, indent=1) + '\n'
  (workdir / 'comparison.json').write_text(whole)
  draw([s['label'] for s in summaries], histories, workdir / 'comparison.png')
  print(f'\n{table}')
  print(f'table:  {workdir / "comparison.md"}')
  print(f'figure: {workdir / "comparison.png"}')
  failed = [s['label'] for s in summaries if 'failed' in s]
  if failed:
    cli.fail(f'{", ".join(failed)} did not end; see above')


def parse_runs(given: Sequence[str]) -> list[config.RunConfig]:
  """One config for every run, given as --run has it.

  Raises:
    ValueError: if there is none, or one is wrong.
  """
  if not given:
    raise ValueError('compare.py needs --run, such as --run=pr_sgd,period=4')
  for name in ('algorithm', *config.OPTIONS):
    if FLAGS[name].present:
      raise ValueError(
        f'--{name} belongs to one run; write --run=ALGORITHM,{name}=...'
      )
  common = config.from_flags(FLAGS, algorithm='ssgd')
  run_configs = [_parse_run(text, common) for text in given]
  labels = [c.label() for c in run_configs]
  for label in labels:
    if labels.count(label) > 1:
      raise ValueError(f'--run={label!r} is given twice')
  return run_configs


def _parse_run(text: str, common: config.RunConfig) -> config.RunConfig:
  algorithm, *pairs = text.split(',')
  algorithm_flags.check_name(algorithm)
  options = {}
  for pair in pairs:
    name, _, value = pair.partition('=')
    if name in options:
      raise ValueError(f'--run={text}: {name} is given twice')
    if name not in config.OPTIONS or not value:
      raise ValueError(
        f'--run={text}: expected option=value with an option of {algorithm}, '
        f'one of {", ".join(algorithm_flags.options(algorithm))}; got {pair!r}'
      )
    try:
      options[name] = FLAGS[name].parser.parse(value)
    except ValueError as error:
      raise ValueError(f'--run={text}: {name}: {error}') from None
  changed = dataclasses.replace(common, algorithm=algorithm, options=options)
  return config.check(changed)


def _run(
  parts: experiment.Parts, run_dir: pathlib.Path, intervals: runs.Intervals
) -> records.Record:
  """The summary of a run, which is done now or was before.

  Of one that diverges it is the last record, and `failed` says why.
  """
  label = parts.config.label()
  with cli.one_line_errors(ValueError):
    runs.open_workdir(parts, run_dir, intervals, resume=True)
    summary = records.read_summary(run_dir)
    if summary is not None and summary['step'] == parts.plan.num_steps:
      print(f'{label}: done before, read from {run_dir}')
      return summary
  with cli.one_line_errors(CheckpointError):
    try:
      return runs.execute(
        experiment.prepare(parts), run_dir, intervals, progress=FLAGS.progress
      )
    except runs.NonFinite as error:
      cli.warn(f'{label}: {error}')
      return {'label': label, 'failed': str(error)}


def format_table(summaries: Sequence[records.Record]) -> str:
  """A markdown table, one row per run."""
  head = (
    '| algorithm | steps | train loss | test loss | test accuracy | rounds '
    '| bytes sent per replica |\n|---|---|---|---|---|---|---|\n'
  )
  return head + ''.join(map(_row, summaries))


def _row(summary: records.Record) -> str:
  if 'failed' in summary:
    return f'| {summary["label"]} | not finite | | | | | |\n'
  cells = (
    summary['label'],
    str(summary['step']),
    f'{summary["loss"]:.4f}',
    f'{summary["test_loss"]:.4f}',
    f'{summary["test_accuracy"]:.2%}',
    str(summary['rounds']),
    records.format_bytes(summary['bytes_sent']),
  )
  return f'| {" | ".join(cells)} |\n'


def draw(
  labels: Sequence[str],
  histories: Sequence[Sequence[records.Record]],
  path: pathlib.Path,
) -> None:
  """Loss and accuracy, against steps and against bytes."""
  matplotlib.use('Agg')
  figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout='constrained')
  measures = (
    ('loss', 'training loss of the replicas', 'log'),
    ('test_accuracy', 'test accuracy of their average', 'linear'),
  )
  for row, (measure, title, scale) in zip(axes, measures, strict=True):
    for axis, against in zip(row, ('step', 'bytes_sent'), strict=True):
      for label, history in zip(labels, histories, strict=True):
        shown = [r for r in history if measure in r]
        x = [
          r[against] / (2**20 if against == 'bytes_sent' else 1) for r in shown
        ]
        axis.plot(x, [r[measure] for r in shown], marker='.', label=label)
      axis.set_yscale(scale)
      axis.set_ylabel(title)
      if against == 'bytes_sent':
        axis.set_xscale('symlog', linthresh=0.1)
        axis.set_xlim(left=0)
        axis.set_xlabel('MiB sent per replica')
      else:
        axis.set_xlabel('steps')
      axis.grid(alpha=0.3)
  axes[0, 0].legend()
  figure.savefig(path, dpi=120)
  plt.close(figure)


if __name__ == '__main__':
  cli.run(main)
