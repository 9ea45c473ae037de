"""The figure of PR-SGD on the device, as far as the time goes.

Its runs are the pieces of the reproductions: ResNet-20 in the paper's setting
(`t01_pr_sgd`) if CIFAR-10 is in the data directory, otherwise ResNet-8 on
images of 16 x 16 pixels (`t01_long`), whose packed file of 30 MB can be carried
where the whole data set is too large.
"""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any

from experiments.papers import pieces, t01_long, t01_pr_sgd
from experiments.papers.headline import small_images
from experiments.papers.pieces import Piece
from experiments.papers.target import Setting
from experiments.running.records import records
from prsgd_jax.data.datasets import DatasetError, load_dataset

MISSING = (
  'the figure is skipped: --data_dir has neither CIFAR-10 nor '
  f'{small_images.PACKED}'
)


def find(data_dir: str | None, workdir: pathlib.Path) -> list[Piece]:
  """Return the runs that the data allow, none without data.

  Args:
    data_dir: directory of the prepared data sets.
    workdir: directory of the runs.
  """
  if small_images.packed(data_dir) is not None:
    target, scale = t01_long.TARGET, 'long'
  else:
    try:
      load_dataset('cifar10', data_dir)
    except DatasetError:
      return []
    target, scale = t01_pr_sgd.TARGET, 'full'
  # A directory as that of reproduce.py, which can then resume the runs.
  setting = Setting(scale, data_dir, workdir / f'{target.name}-{scale}')
  return list(target.pieces(setting)) if target.pieces else []


def train(
  runs: Sequence[Piece], data_dir: str | None, left: Callable[[], float]
) -> bool:
  """Train the runs in turn until the budget is spent.

  Args:
    runs: result of `find`.
    data_dir: directory of the prepared data sets.
    left: seconds left.

  Returns:
    Whether all runs are finished or diverged.

  Raises:
    Stopped: if the end of the budget stopped a run; it is saved.
  """
  return pieces.run_all(
    pieces.in_order(runs), data_dir, left, lambda piece: None
  )


def summary(runs: Sequence[Piece]) -> list[records.Record]:
  """Return a row for each run that has begun.

  Returns:
    Dicts with `run`, `step`, `num_steps`, `seconds`, `images_per_second`,
    `loss` and `test_accuracy` of the newest record that has them.
  """
  rows = []
  for piece in runs:
    done = pieces.progress_of(piece)
    if not done.step:
      continue
    history = records.read_records(piece.workdir)
    tested = [r for r in history if 'test_accuracy' in r]
    config = piece.config
    images = done.step * config.num_replicas * config.batch_size
    row: dict[str, Any] = {
      'run': piece.name,
      'model': config.model,
      'step': done.step,
      'num_steps': done.num_steps,
      'seconds': done.seconds,
      'images_per_second': images / done.seconds,
      'loss': history[-1]['loss'],
      'test_accuracy': tested[-1]['test_accuracy'] if tested else None,
    }
    rows.append(row)
  return rows
