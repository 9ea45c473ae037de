"""Run the presets of the results table and write the table.

  python experiments/tools/results.py --data_dir=DIR

compare.py runs each preset once per seed. The results are saved in
experiments/results/, and the table in experiments/README.md is written only
from these files. Repeat the command to resume interrupted runs.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import itertools
import subprocess

from absl import flags
import pandas as pd

from experiments.running.flags import cli
from experiments.running.records import json_files, records, units, writing
from experiments.tools import tables
from experiments.tools.tables import Column

FLAGS = flags.FLAGS

HERE = pathlib.Path(__file__).parents[1]
README = HERE / 'README.md'
RESULTS = HERE / 'results'
BEGIN, END = '<!-- results: begin -->\n', '<!-- results: end -->\n'

# Name for all presets of a single digits run, one for every algorithm.
EACH = 'digits_each'
# Preset -> its seeds; only one if a run takes minutes.
SEEDS = {
  EACH: (0,),
  'digits_mlp': (0, 1, 2),
  'digits_lenet': (0, 1, 2),
  'mnist_lenet': (0,),
  'cifar10_resnet20': (0,),
  'text_diloco': (0,),
}

flags.adopt_module_key_flags(cli)
flags.DEFINE_list('presets', list(SEEDS), 'Presets to run, by name.')
flags.DEFINE_bool(
  'train',
  True,
  'Run the presets before writing the table; --notrain only writes it.',
)


def main() -> None:
  with cli.one_line_errors(ValueError):
    for preset in FLAGS.presets:
      if preset not in SEEDS:
        raise ValueError(
          f'unknown preset {preset!r}; use some of {", ".join(SEEDS)}'
        )
  if FLAGS.train:
    for preset in FLAGS.presets:
      for seed in SEEDS[preset]:
        with cli.one_line_errors(json_files.DamagedFile):
          _run(preset, seed)
  with cli.one_line_errors(json_files.DamagedFile):
    found = read_results()
  writing.write_text(README, with_table(README.read_text(), found))
  print(f'table: {README}')


def single_runs() -> list[str]:
  """Return the presets of a single digits run."""
  return [
    path.stem
    for path in sorted((HERE / 'presets').glob('digits_*.flags'))
    if '\n--algorithm=' in path.read_text()
  ]


def _run(preset: str, seed: int) -> None:
  """Run a preset and save its results, a list of summaries."""
  name = f'{preset}-seed{seed}'
  workdir = pathlib.Path(FLAGS.workdir or 'runs/results') / name
  RESULTS.mkdir(exist_ok=True)
  if preset != EACH:
    _call('compare.py', preset, seed, workdir)
    found = (workdir / 'comparison.json').read_text()
    writing.write_text(RESULTS / f'{name}.json', found)
    return
  summaries = []
  for single in single_runs():
    again = (workdir / single / records.CONFIG).exists()
    _call('train.py', single, seed, workdir / single, *['--resume'] * again)
    summaries.append(records.read_summary(workdir / single))
  writing.write_text(RESULTS / f'{name}.json', writing.to_json(summaries))


def _call(
  program: str, preset: str, seed: int, workdir: pathlib.Path, *more: str
) -> None:
  """Run a program with a preset."""
  command = [
    sys.executable,
    str(HERE / program),
    f'--flagfile={HERE / "presets" / preset}.flags',
    f'--seed={seed}',
    f'--workdir={workdir}',
    *more,
  ]
  if FLAGS.data_dir is not None:
    command.append(f'--data_dir={FLAGS.data_dir}')
  done = subprocess.run(command, check=False)
  if done.returncode:
    cli.fail(f'{preset} with seed {seed} did not finish; see above')


def read_results() -> dict[str, list[list[records.Record]]]:
  """Return preset -> for each seed, the summaries of its runs.

  Raises:
    DamagedFile: if a file has another form.
  """
  return {
    preset: [
      writing.with_nan(found)
      for seed in seeds
      if (found := _read(RESULTS / f'{preset}-seed{seed}.json')) is not None
    ]
    for preset, seeds in SEEDS.items()
  }


def _read(path: pathlib.Path) -> list[records.Record] | None:
  return json_files.read(path, json_files.list_of(records.SUMMARY_FORM))


def with_table(
  text: str, results: dict[str, list[list[records.Record]]]
) -> str:
  """Return the text with a new table between its two marks."""
  before, _, rest = text.partition(BEGIN)
  _, _, after = rest.partition(END)
  return before + BEGIN + format_table(results) + END + after


def format_table(results: dict[str, list[list[records.Record]]]) -> str:
  """Return a Markdown table with a row for each preset and algorithm."""
  runs = [
    {'preset': preset, **summary}
    for preset, by_seed in results.items()
    for summary in itertools.chain.from_iterable(by_seed)
  ]
  groups = tables.over_seeds(runs, ('preset', 'label'))
  return tables.markdown([_row(*group) for group in groups], COLUMNS)


def _row(place: tuple[str, ...], seeds: pd.DataFrame) -> records.Record:
  first = seeds.iloc[0]
  return {
    **dict(zip(('preset', 'label'), place, strict=True)),
    'seeds': len(seeds),
    'epoch': first['epoch'],
    'loss': tables.spread(seeds['loss'], '{:.4f}'.format),
    'test_accuracy': tables.spread(seeds['test_accuracy'], units.percent),
    'rounds': first['rounds'],
    'bytes_sent': first['bytes_sent'],
    'machine': f'{first["cpus"]} {first["device"]} cores, JAX {first["jax"]}',
    'commit': ', '.join(sorted(set(seeds['commit']))),
  }


COLUMNS = (
  Column('preset'),
  Column('label', 'algorithm'),
  Column('seeds'),
  Column('epoch', 'epochs', '{:.0f}'.format),
  Column('loss', 'train loss'),
  Column('test_accuracy', 'test accuracy'),
  Column('rounds'),
  Column('bytes_sent', 'bytes sent per replica', units.size),
  Column('machine'),
  Column('commit'),
)


if __name__ == '__main__':
  cli.run(main)
