"""A new run from the parameters of another: `--init_from`."""

import os
import pathlib
from typing import Any, NamedTuple

from absl import flags
import jax

from experiments.running.execution.parts import Parts, point_shapes
from experiments.running.process import process_zero
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
    seal: SHA-256 of its record, which names all its files.
  """

  path: pathlib.Path
  replicas: str
  seal: str


def plan(
  parts: Parts, workdir: pathlib.Path | None, values: flags.FlagValues
) -> tuple[Parts, Start | None]:
  """Find where a run starts from, and note that in its description.

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
  # By process 0, because the others may see other files.
  found = process_zero.decide(
    f'--{NAME}', lambda: _choose(parts, workdir, source, values.init_replicas)
  )
  start = None if found['path'] is None else _start(found)
  description = {**parts.description, NAME: found['text']}
  return parts._replace(description=description), start


def _choose(
  parts: Parts, workdir: pathlib.Path | None, source: str, replicas: str
) -> records.Record:
  """Path, replicas and seal of a checkpoint, and its text in a description.

  The path is None for a run that has a checkpoint.
  """
  if workdir and checkpoints.steps(workdir / records.CHECKPOINTS):
    return {'path': None, 'text': _of_resumed(workdir, source)}
  path = _find(pathlib.Path(source)).absolute()
  n = checkpoint_model.check(path, *_shapes(parts))
  if replicas == 'each' and n != parts.trainer.mesh.num_replicas:
    raise ValueError(
      f'--init_replicas=each needs the --num_replicas={n} of {path}, got '
      f'{parts.trainer.mesh.num_replicas}; use --init_replicas=mean'
    )
  seal = checkpoint_files.read_seal(path)['sha256']
  # By its step and contents, because its place may change.
  text = f'step {path.name} of {seal[:16]}, {replicas}'
  return {'path': str(path), 'replicas': replicas, 'seal': seal, 'text': text}


def _start(found: records.Record) -> Start:
  return Start(pathlib.Path(found['path']), found['replicas'], found['seal'])


def first_state(parts: Parts, start: Start | None) -> State:
  """Return the first state of a run, from where `plan` found.

  Raises:
    CheckpointError: if the checkpoint is damaged, or another one for process 0.
  """
  if start is None:
    return parts.first_state()
  if checkpoint_files.read_seal(start.path)['sha256'] != start.seal:
    raise checkpoints.CheckpointError(
      f'{start.path} is not the checkpoint that process 0 found; put it on a '
      'file system that all processes share'
    )
  each = start.replicas == 'each'
  point = checkpoint_model.read(start.path, *_shapes(parts))
  if not each:
    point = jax.tree.map(host_mean, point)
  return parts.trainer.init(*point, seed=parts.seed, per_replica=each)


def _find(source: pathlib.Path) -> pathlib.Path:
  """The checkpoint that a directory is or has."""
  if (source / checkpoint_files.RECORD).exists():
    return source
  places = (source / records.CHECKPOINTS, source) if source.is_dir() else ()
  for directory in places:
    step = checkpoints.latest_step(directory)
    if step is not None:
      return directory / str(step)
  raise ValueError(
    f'--init_from={source} has no checkpoint; pass the directory of a run, of '
    'its checkpoints or of one checkpoint'
  )


def _shapes(parts: Parts) -> tuple[Any, Any]:
  return point_shapes(parts.init, parts.example())


def _of_resumed(workdir: pathlib.Path, source: str) -> str | None:
  """What the description says where the run began from a source before."""
  saved = records.read_config(workdir)
  before = saved['flags'].get(NAME)
  if before is None or os.path.abspath(before) != os.path.abspath(source):
    raise ValueError(differences.refusal(workdir, NAME, before, source))
  return saved['description'].get(NAME)
