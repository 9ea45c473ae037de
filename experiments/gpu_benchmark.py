"""Measure one GPU: ways to compute replicas, scaling, memory, PR-SGD's figure.

  python experiments/gpu_benchmark.py --gpu_dir=runs/gpu
  python experiments/gpu_benchmark.py --gpu_dir=runs/gpu --status

A call works for --minutes, then exits with code 75 if there is more to do;
repeat it to measure the missing pieces. Each result is saved as soon as it
is measured, in results.json, and table.md is written from it. On a CPU, all
sizes are tiny, to check that the program works.

The figure of PR-SGD needs CIFAR-10 in --data_dir, or the file that
--pack=cifar10_16.npz writes, with images of 16 x 16 pixels.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import signals

if __name__ == '__main__':
  signals.watch()  # before the other imports, which take seconds

from collections.abc import Callable, Sequence
import time
from typing import Any

from absl import flags
import jax

from experiments.gpu import (
  cases,
  contestants,
  figure_runs,
  peaks,
  report,
  store,
  timing,
)
from experiments.gpu.cases import Case
from experiments.papers import pieces
from experiments.papers.headline import small_images
from experiments.papers.pieces import Piece
from experiments.running.flags import cli, config, piece_flags
from experiments.running.process import budgets, exit_codes, locks
from experiments.running.records import records, writing

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(piece_flags)
flags.DEFINE_string(
  'gpu_dir', 'runs/gpu', 'Directory of the results and of the figure runs.'
)
flags.DEFINE_float(
  'reserve',
  75.0,
  'Seconds that must be left to begin a loop, because it compiles first; >= 0.',
)
flags.DEFINE_float(
  'loops_share',
  0.6,
  'Share of --minutes after which a call with data for the figure leaves the '
  'loops for the figure, in [0, 1].',
)
flags.DEFINE_bool(
  'tiny',
  None,
  'Shrink all sizes, to check the program. Default: on a CPU only.',
)
flags.DEFINE_string(
  'pack',
  None,
  'File to write CIFAR-10 of --data_dir to, averaged down to 16 x 16 pixels; '
  f'name it {small_images.PACKED}. Nothing is measured.',
)

FIGURE = 'figure'
SECONDS = 540.0  # of a call, because many machines are lent for ten minutes


def main() -> None:
  with cli.one_line_errors(ValueError):
    if FLAGS.pack is not None:
      small_images.pack(FLAGS.data_dir, pathlib.Path(FLAGS.pack))
      return
    _check()
    budget = piece_flags.seconds(FLAGS, least=0) or SECONDS
    directory = pathlib.Path(FLAGS.gpu_dir)
    tiny = FLAGS.tiny
    if tiny is None:
      tiny = jax.default_backend() == 'cpu'
    wanted = cases.all_cases(tiny=tiny)
    results = store.read(directory)
    if FLAGS.status:
      print(report.page(results, wanted))
      return
    runs = [] if tiny else figure_runs.find(FLAGS.data_dir, directory)
  if not runs and not tiny:
    print(figure_runs.MISSING)
  with (
    cli.one_line_errors(ValueError),
    locks.hold(directory),
    signals.exit_when_stopped(signals.again()),
    budgets.limited(budget) as left,
  ):
    finished = _work(directory, results, wanted, runs, left, budget, tiny=tiny)
  print(f'results: {directory / store.NAME}, {directory / "table.md"}')
  if not finished:
    print(f'more to do; repeat the command: {signals.again()}')
    sys.exit(exit_codes.STOPPED)


def _check() -> None:
  """Raise ValueError if a flag is out of its range."""
  if not FLAGS.reserve >= 0:
    raise ValueError(f'--reserve must be >= 0, got {FLAGS.reserve}')
  if not 0 <= FLAGS.loops_share <= 1:
    raise ValueError(
      f'--loops_share must be in [0, 1], got {FLAGS.loops_share}'
    )


def _work(
  directory: pathlib.Path,
  results: store.Results,
  wanted: Sequence[Case],
  runs: Sequence[Piece],
  left: Callable[[], float],
  budget: float,
  *,
  tiny: bool,
) -> bool:
  """Measure what is missing, and train; return whether nothing is left.

  Args:
    directory: directory of the results.
    results: the results so far, which are updated.
    wanted: all cases.
    runs: runs of the figure.
    left: seconds left.
    budget: seconds of this call.
    tiny: whether all sizes are tiny.
  """
  if not results['machine']:
    results['machine'] = records.machine()
  share = FLAGS.loops_share if runs and not _trained(runs) else 1.0
  kept_free = budget * (1 - share)
  loops = _measure_all(
    directory, results, wanted, lambda: left() - kept_free, tiny=tiny
  )
  trained = not runs
  if runs and left() > budgets.LEAST:
    try:
      trained = figure_runs.train(runs, FLAGS.data_dir, left)
    finally:
      store.finish(directory, results, FIGURE, figure_runs.summary(runs))
      _write_page(directory, results, wanted)
  return loops and trained


def _trained(runs: Sequence[Piece]) -> bool:
  done = [pieces.progress_of(piece) for piece in runs]
  return all(x.finished or x.failed for x in done)


def _measure_all(
  directory: pathlib.Path,
  results: store.Results,
  wanted: Sequence[Case],
  left: Callable[[], float],
  *,
  tiny: bool,
) -> bool:
  """Measure the missing pieces in order; return whether none is left."""
  size = peaks.TINY if tiny else peaks.LARGE
  todo: list[tuple[str, Callable[[], Any]]] = [
    (report.PEAKS, lambda: peaks.measure(size)),
    *((c.name, lambda c=c: measure(c, tiny=tiny)) for c in wanted),
  ]
  for name, piece in todo:
    if not store.is_due(results, name):
      continue
    if left() < FLAGS.reserve:
      return False
    if not store.begin(directory, results, name):
      continue
    begun = time.monotonic()
    found = _caught(piece)
    store.finish(directory, results, name, found)
    _write_page(directory, results, wanted)
    state = f'failed ({found["failed"]})' if 'failed' in found else 'measured'
    print(f'{name}: {state} in {time.monotonic() - begun:.1f} s', flush=True)
  return True


def _caught(piece: Callable[[], Any]) -> Any:
  """Return the result of a piece, or the reason why it failed."""
  try:
    return piece()
  except Exception as error:  # such as too little memory; the others can run
    lines = str(error).splitlines() or ['']
    return {'failed': f'{type(error).__name__}: {lines[0][:200]}'}


def measure(case: Case, *, tiny: bool) -> dict[str, Any]:
  """Return the result of a case; see `timing.measure` and `cost`."""
  size = cases.TINY if tiny else cases.LARGE
  budget = timing.SHORT if tiny else timing.LONG
  found = timing.measure(
    lambda: contestants.begin(case, size), case.num_steps, budget
  )
  jax.clear_caches()  # because many programs fill the memory
  return {**found, **contestants.cost(case, size)}


def _write_page(
  directory: pathlib.Path, results: store.Results, wanted: Sequence[Case]
) -> None:
  writing.write_text(directory / 'table.md', report.page(results, wanted))


if __name__ == '__main__':
  del config  # imported because it defines flags that the figure runs read
  cli.run(main)
