"""A new run from the parameters of another: `--init_from`."""

import os
import pathlib
from typing import Any, NamedTuple

from absl import flags
import jax

from experiments.running.execution.parts import Parts, point_shapes
from experiments.running.records import differences, records
from prsgd_jax.engine import checkpoint_files, checkpoint_model, checkpoints
from prsgd_jax.engine.run_state import State
from prsgd_jax.engine.train_state import host_mean

NAME = 'init_from'


class Start(NamedTuple):
  """The checkpoint that a new run starts from.

  Attributes:
    path: of the checkpoint.
    replicas: 'mean' or 'each'.
  """

  path: pathlib.Path
  replicas: str


def plan(
  parts: Parts, workdir: pathlib.Path | None, values: flags.FlagValues
) -> tuple[Parts, Start | None]:
  """Finds where a run starts from, and notes that in its description.

  Args:
    parts: of the run.
    workdir: of the run; with a checkpoint of its own, it needs no other. None
      for a new run.
    values: the flags.

  Returns:
    The parts, and the checkpoint to start from; None for none.

  Raises:
    ValueError: if the checkpoint is not there, damaged, or of another model.
  """
  source = values[NAME].value
  if source is None:
    if values['init_replicas'].present and values.init_replicas != 'mean':
      raise ValueError('--init_replicas does nothing without --init_from')
    return parts, None
  start = None
  if workdir and checkpoints.steps(workdir / records.CHECKPOINTS):
    text = _of_resumed(workdir, source)
  else:
    start = Start(_find(pathlib.Path(source)), values.init_replicas)
    n = checkpoint_model.check(start.path, *_shapes(parts))
    if start.replicas == 'each' and n != parts.trainer.mesh.num_replicas:
      raise ValueError(
        f'--init_replicas=each needs the --num_replicas={n} of {start.path}, '
        f'got {parts.trainer.mesh.num_replicas}; use --init_replicas=mean'
      )
    text = _describe(start)
  description = {**parts.description, NAME: text}
  return parts._replace(description=description), start


def first_state(parts: Parts, start: Start | None) -> State:
  """Returns the first state of a run, from where `plan` found.

  Raises:
    CheckpointError: if the checkpoint is damaged.
  """
  if start is None:
    return parts.first_state()
  each = start.replicas == 'each'
  point = checkpoint_model.read(start.path, *_shapes(parts))
  if not each:
    point = jax.tree.map(host_mean, point)
  return parts.trainer.init(*point, seed=parts.seed, per_replica=each)


def _find(source: pathlib.Path) -> pathlib.Path:
  """The checkpoint that a directory is or has."""
  if (source / checkpoint_files.RECORD).exists():
    return source
  for directory in (source / records.CHECKPOINTS, source):
    step = checkpoints.latest_step(directory)
    if step is not None:
      return directory / str(step)
  raise ValueError(
    f'--init_from={source} has no checkpoint; pass the directory of a run'
  )


def _shapes(parts: Parts) -> tuple[Any, Any]:
  return point_shapes(parts.init, parts.example())


def _describe(start: Start) -> str:
  """The checkpoint by its step and contents: its place may change."""
  seal = checkpoint_files.read_seal(start.path)['sha256']
  return f'step {start.path.name} of {seal[:16]}, {start.replicas}'


def _of_resumed(workdir: pathlib.Path, source: str) -> str | None:
  """What the description says where the run began from a source before."""
  saved = records.read_config(workdir)
  before = saved['flags'].get(NAME)
  if before is None or os.path.abspath(before) != os.path.abspath(source):
    raise ValueError(differences.refusal(workdir, NAME, before, source))
  return saved['description'].get(NAME)
