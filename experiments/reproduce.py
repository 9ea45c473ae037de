"""Run the reproductions of papers and write the pages of their results.

  python -m experiments.reproduce --data_dir=DIR
  python -m experiments.reproduce --targets=t01_pr_sgd --scale=full
  python -m experiments.reproduce --scale=long --minutes=10
  python -m experiments.reproduce --scale=long --status
  python -m experiments.reproduce --redraw

At the scale cpu, --at_once=2 targets run at a time, each in a process.

Each target is a module of experiments/papers. It writes a JSON file of results
and a PNG figure to experiments/results/reproduce/. A target with a JSON file is
skipped unless --again is given. RESULTS.md and docs/claims.md are written from
the JSON files.

At the scales long and full, targets with curves that take hours run them piece
by piece, a curve with a seed each, in the order that shows most first. With
--minutes the program stops in time, saves its state, and exits with code 75 if
there is more to do. Repeat the command until it exits with 0. A finished curve
is kept beside the results, so that another clone does not train it again unless
--again is given.
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

from collections.abc import Callable
import importlib
import json
import math
import os
import pkgutil

from absl import flags

from experiments import papers
from experiments.papers import keeping, pieces, results_page, side_by_side
from experiments.papers.headline import curves
from experiments.papers.pieces import Piece
from experiments.papers.target import Outcome, Setting, Target
from experiments.running.flags import (
  cli,
  kept_flags,
  network,
  piece_flags,
  speed_flags,
)
from experiments.running.process import budgets, exit_codes, locks
from experiments.running.records import json_files

FLAGS = flags.FLAGS

RESULTS = pathlib.Path(__file__).parent / 'results' / 'reproduce'

# Because a run first compiles.
LEAST_MINUTES = 2.0

flags.adopt_module_key_flags(speed_flags)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(kept_flags)
flags.adopt_module_key_flags(piece_flags)
flags.DEFINE_list(
  'targets',
  [],
  'Targets to run, with commas between them, such as t01_pr_sgd. Default: all '
  'targets that have this --scale.',
)
flags.DEFINE_enum(
  'scale',
  'cpu',
  ['cpu', 'long', 'full'],
  'Size of the experiments: cpu takes minutes on a CPU; long takes hours on a '
  'CPU; full is the setting of the paper.',
)
flags.DEFINE_integer(
  'at_once',
  2,
  'Targets to run at a time at --scale=cpu, each in a process, >= 1. Most of a '
  'target uses one core.',
  lower_bound=1,
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
  tuned = speed_flags.apply(FLAGS)
  known = all_targets()
  with cli.one_line_errors(ValueError):
    targets = _chosen(known)
    budget = piece_flags.seconds(FLAGS, least=LEAST_MINUTES)
  all_done = True
  if FLAGS.status:
    with cli.one_line_errors(ValueError):
      _status(targets)
    return
  if FLAGS.redraw:
    _redraw(targets)
  elif not FLAGS.page_only:
    print(tuned, end='')
    with (
      cli.one_line_errors(ValueError),
      signals.exit_when_stopped(signals.again()),
      budgets.limited(budget) as left,
    ):
      all_done = _run_all(targets, left)
  with cli.one_line_errors(json_files.DamagedFile):
    page = results_page.write(RESULTS, known)
  print(f'page: {page}')
  if not all_done:
    print(f'more to do; repeat the command: {signals.again()}')
    sys.exit(exit_codes.STOPPED)


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


def _run_all(targets: list[Target], left: Callable[[], float]) -> bool:
  """Run the pieces of all targets, then measure them; return if all is done.

  Args:
    targets: the targets.
    left: seconds left of the budget.
  """
  if FLAGS.scale != 'cpu':
    cli.make_fake_devices(_num_devices())

  def judge(piece: Piece) -> None:
    curves.keep(piece, again=FLAGS.again)
    for target in targets:
      if target.judges_part:
        _judge_part(target)

  chosen = _pieces(targets)
  for piece in chosen:  # those whose process ended before they were kept
    curves.keep(piece, again=FLAGS.again)
  if not pieces.run_all(chosen, FLAGS.data_dir, left, judge, again=FLAGS.again):
    return False
  waiting = [t for t in targets if FLAGS.again or not _kept(t).exists()]
  if FLAGS.scale == 'cpu' and min(FLAGS.at_once, len(waiting)) > 1:
    _run_side_by_side(waiting)
    return True
  for target in targets:
    if left() < budgets.LEAST:
      return False
    _run(target)
  return True


def _run_side_by_side(targets: list[Target]) -> None:
  """Run targets as processes, which save their results."""
  # The longest first, so that it does not run after all others.
  in_order = sorted(targets, key=_last_seconds, reverse=True)
  workdirs = {target.name: _setting(target).workdir for target in in_order}
  arguments = [f'--workdir={FLAGS.workdir}'] if FLAGS.workdir else []
  arguments += [f'--data_dir={FLAGS.data_dir}'] if FLAGS.data_dir else []
  arguments += speed_flags.given(FLAGS)
  program = pathlib.Path(__file__).resolve()
  with cli.one_line_errors(locks.LockError):
    failed = side_by_side.run_all(workdirs, program, arguments, FLAGS.at_once)
  if failed:
    cli.fail(f'{len(failed)} of {len(targets)} targets failed: {failed[0]}')


def _last_seconds(target: Target) -> float:
  """Return how long a target took the last time, infinity if unknown."""
  path = _kept(target)
  if not path.exists():
    return math.inf
  return float(json.loads(path.read_text())['seconds'])


def _num_devices() -> int:
  """Return how many fake devices share 8 replicas on this CPU."""
  cores = os.cpu_count() or 1
  return next(n for n in (8, 4, 2, 1) if n <= cores)


def _pieces(targets: list[Target]) -> list[Piece]:
  """Return the pieces of targets that are not measured yet, in order."""
  found: list[Piece] = []
  if FLAGS.scale == 'cpu':  # minutes, so it is one piece
    return found
  for target in targets:
    done = _kept(target).exists() and not target.judges_part
    if target.pieces is not None and (FLAGS.again or not done):
      found += target.pieces(_setting(target))
  return pieces.in_order(found)


def _status(targets: list[Target]) -> None:
  """Print how far the pieces are, and draw the curves so far."""
  if FLAGS.scale == 'cpu':
    raise ValueError('--status requires --scale=long or --scale=full')
  print(pieces.status(_pieces(targets)))
  for target in targets:
    if target.pieces is None:
      state = 'done' if _kept(target).exists() else 'not done'
      print(f'{target.name}: {state}; it has no pieces')
    if target.draw_so_far is None:
      continue
    figure = _setting(target).workdir / 'so_far.png'
    data = target.draw_so_far(_setting(target))
    if data is not None:
      keeping.draw(target, data, figure)
      print(f'figure: {figure}')


def _kept(target: Target) -> pathlib.Path:
  return RESULTS / f'{target.name}-{FLAGS.scale}.json'


def _setting(target: Target) -> Setting:
  root = pathlib.Path(FLAGS.workdir or 'runs/reproduce')
  workdir = root / f'{target.name}-{FLAGS.scale}'
  return Setting(FLAGS.scale, FLAGS.data_dir, workdir, RESULTS)


def _judge_part(target: Target) -> None:
  """Save the results of the finished pieces unless they are saved already."""
  outcome = target.measure(_setting(target))
  kept = _kept(target)
  if not outcome.claims:
    return
  if keeping.holds(kept, outcome):
    return
  if keeping.missing(kept) < outcome.data['missing']:
    print(f'{target.name}: {kept} has more curves, so it is not replaced')
    return
  keeping.save(
    target,
    outcome,
    kept,
    scale=FLAGS.scale,
    seconds=3600 * outcome.data['hours'],
  )
  _print_verdicts(outcome)


def _run(target: Target) -> None:
  """Measure a target unless it is done, save its results, and draw them."""
  if target.judges_part:
    _judge_part(target)
    return
  kept = _kept(target)
  if kept.exists() and not FLAGS.again:
    print(f'{target.name}: already done, saved in {kept}')
    return
  print(f'{target.name}: {target.title}', flush=True)
  _print_verdicts(keeping.measure(target, _setting(target), kept))


def _print_verdicts(outcome: Outcome) -> None:
  for claim in outcome.claims:
    print(f'  {claim.verdict}: {claim.text} ({claim.sentence})')


def _redraw(targets: list[Target]) -> None:
  """Draw the saved results of the targets at the scale; run none."""
  for target in targets:
    kept = _kept(target)
    if kept.exists():
      figure = kept.with_suffix('.png')
      keeping.draw(target, json.loads(kept.read_text())['data'], figure)
      print(f'figure: {figure}')


if __name__ == '__main__':
  del network  # imported because it defines flags that the targets read
  cli.run(main)
