"""Run the reproductions of papers and write experiments/RESULTS.md.

  python -m experiments.reproduce --data_dir=DIR
  python -m experiments.reproduce --targets=t01_pr_sgd --scale=full
  python -m experiments.reproduce --redraw

Each target is a module of experiments/papers. It writes a JSON file of results
and a PNG figure to experiments/results/reproduce/. A target with a JSON file is
skipped unless --again is given. RESULTS.md is written from the JSON files.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import signals

if __name__ == '__main__':
  signals.watch()  # before the other imports, which take seconds

import importlib
import json
import pkgutil
import time

from absl import flags
from matplotlib.figure import Figure

from experiments import papers
from experiments.papers import claims, results_page
from experiments.papers.target import Setting, Target
from experiments.running.flags import cli, network
from experiments.running.records import json_files, records, writing
from experiments.tools import drawing, figure_files

FLAGS = flags.FLAGS

RESULTS = pathlib.Path(__file__).parent / 'results' / 'reproduce'

flags.adopt_module_key_flags(cli)
flags.DEFINE_list(
  'targets',
  [],
  'Targets to run, with commas between them, such as t01_pr_sgd. Default: all '
  'targets that have this --scale.',
)
flags.DEFINE_enum(
  'scale',
  'cpu',
  ['cpu', 'full'],
  'Size of the experiments: cpu takes minutes on a CPU; full is the setting of '
  'the paper.',
)
flags.DEFINE_bool('again', False, 'Repeat targets that are already done.')
flags.DEFINE_bool(
  'redraw',
  False,
  'Redraw the figures and rewrite RESULTS.md from saved results; run nothing.',
)
flags.DEFINE_bool(
  'page_only', False, 'Rewrite RESULTS.md from saved results; run nothing.'
)


def all_targets() -> dict[str, Target]:
  """Return every target by the name of its module."""
  names = sorted(
    module.name
    for module in pkgutil.iter_modules(papers.__path__)
    if module.name[0] == 't' and module.name[1:3].isdigit()
  )
  package = papers.__name__
  return {n: importlib.import_module(f'{package}.{n}').TARGET for n in names}


def main() -> None:
  known = all_targets()
  with cli.one_line_errors(ValueError):
    targets = _chosen(known)
  if FLAGS.redraw:
    _redraw(targets)
  elif not FLAGS.page_only:
    for target in targets:
      with (
        cli.one_line_errors(ValueError),
        signals.exit_when_stopped(signals.again()),
      ):
        _run(target)
  with cli.one_line_errors(json_files.DamagedFile):
    page = results_page.write(RESULTS, known)
  print(f'page: {page}')


def _chosen(targets: dict[str, Target]) -> list[Target]:
  """Return the targets that the flags select.

  Raises:
    ValueError: if a name is unknown, or its target does not have the scale.
  """
  for name in FLAGS.targets:
    if name not in targets:
      raise ValueError(
        f'unknown target {name!r}; use some of {", ".join(targets)}'
      )
    if FLAGS.scale not in targets[name].scales:
      raise ValueError(
        f'{name} has no --scale={FLAGS.scale}, only '
        f'{", ".join(targets[name].scales)}'
      )
  names = FLAGS.targets or list(targets)
  return [targets[n] for n in names if FLAGS.scale in targets[n].scales]


def _run(target: Target) -> None:
  """Measure a target unless it is done, save its results, and draw them."""
  kept = RESULTS / f'{target.name}-{FLAGS.scale}.json'
  if kept.exists() and not FLAGS.again:
    print(f'{target.name}: already done, saved in {kept}')
    return
  print(f'{target.name}: {target.title}', flush=True)
  root = pathlib.Path(FLAGS.workdir or 'runs/reproduce')
  setting = Setting(
    FLAGS.scale, FLAGS.data_dir, root / f'{target.name}-{FLAGS.scale}'
  )
  begun = time.monotonic()
  outcome = target.measure(setting)
  record = {
    'name': target.name,
    'title': target.title,
    'paper': target.paper,
    'scale': FLAGS.scale,
    'seconds': round(time.monotonic() - begun, 1),
    'machine': records.machine(),
    'commit': records.commit(),
    'seeds': list(outcome.seeds),
    'claims': [claims.to_json(claim) for claim in outcome.claims],
    'data': outcome.data,
  }
  RESULTS.mkdir(parents=True, exist_ok=True)
  text = writing.to_json(record)
  draw(
    target, writing.with_nan(json.loads(text)['data']), kept.with_suffix('.png')
  )
  writing.write_text(kept, text)
  for claim in outcome.claims:
    print(f'  {claim.verdict}: {claim.text} ({claim.sentence})')


def _redraw(targets: list[Target]) -> None:
  """Draw the saved results of the targets at the scale; run none."""
  for target in targets:
    kept = RESULTS / f'{target.name}-{FLAGS.scale}.json'
    if kept.exists():
      figure = kept.with_suffix('.png')
      draw(target, json.loads(kept.read_text())['data'], figure)
      print(f'figure: {figure}')


def draw(target: Target, data: dict, path: pathlib.Path) -> None:
  """Draw the data of a target into a PNG file."""
  figure_files.save(make_figure(target, data), path)


def make_figure(target: Target, data: dict) -> Figure:
  """Return the figure of a target's data, as read back from JSON."""
  with drawing.look():
    figure = Figure(figsize=(9, 4), layout='constrained', dpi=figure_files.DPI)
    target.draw(data, figure)
  return figure


if __name__ == '__main__':
  del network  # imported because it defines flags that the targets read
  cli.run(main)
