"""A run of objects instead of flags: logs, resume, ledger, figures.

It is the harness of train.py for those who have an algorithm, a model and
arrays, in a notebook or a program of their own.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import math
import numbers
import os
import pathlib
from typing import Any

from flax import linen as nn
import jax
import optax

from experiments.running.execution import runs
from experiments.running.execution.intervals import Intervals
from experiments.running.execution.parts import (
  Parts,
  Plan,
  check_data,
  point_shapes,
)
from experiments.running.flags import own_data
from experiments.running.flags.run_config import fingerprint
from experiments.running.logs.loggers import Factory
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.values import Resident
from prsgd_jax.engine import retention
from prsgd_jax.ledger.counting import NETWORK
from prsgd_jax.models.classification import Task, classifier, mode
from prsgd_jax.models.language_modeling import language_model


def run(
  *,
  algorithm: pr.base.ReplicaTransformation,
  model: nn.Module | Task,
  data: Any,
  test_data: Any = None,
  num_replicas: int,
  num_steps: int,
  workdir: str | os.PathLike[str],
  batch_size: int = 32,
  seed: int = 0,
  label: str = 'own',
  settings: Mapping[str, Any] | None = None,
  learning_rate: float | optax.Schedule | None = None,
  partition: Callable[..., Resident] = pr.shared,
  transform: Transform | None = None,
  num_devices: int | None = None,
  network: pr.ledger.Network = NETWORK,
  log_every: int = 50,
  eval_every: int = 100,
  checkpoint_every: int = 500,
  keep: int | pr.engine.Retention | None = runs.KEEP,
  progress: bool = True,
  loggers: Sequence[Factory] = (),
) -> records.Record:
  """Trains, and writes what train.py writes; a run that is there is resumed.

  The directory has records, TensorBoard events, checkpoints and a summary.
  `figures.read_runs` and plot.py, report.py read it. With the same call and a
  larger `num_steps` the run gets longer.

  Args:
    algorithm: of `prsgd_jax`, or of your own.
    model: a flax linen module, which reads `data['image']` and predicts
      `data['label']`, or the next of `data['text']`; or a `Task`, your own
      `init`, `loss_fn` and `eval_fn` on any arrays. An `eval_fn` of None is not
      called.
    data: tree of arrays `[n, ...]`, or a `Dataset`, of which the test split is
      taken, too.
    test_data: tree of the same kind. Default: no evaluation.
    num_replicas: N.
    num_steps: length of the run.
    workdir: directory of the run.
    batch_size: examples per replica and step.
    seed: of the first point, the order of the data, the replicas' keys.
    label: name of the method in tables and figures.
    settings: what else makes it another run, of JSON types, such as
      {'period': 4}; a resumed run must have the same.
    learning_rate: a number, or a function of the step, for the records only.
      Default: they have none.
    partition: who gets which examples: `pr.shared`, `pr.sharded`, or another
      function `(arrays, *, batch_size, seed, transform) -> data`, such as
      `functools.partial(pr.dirichlet, alpha=0.1)`.
    transform: `(key, batch) -> batch`, done to a batch before it is trained on.
    num_devices: D. Default: as many as there are that divide N.
    network: for the modeled time.
    log_every: steps between records.
    eval_every: steps between evaluations, a multiple of `log_every`.
    checkpoint_every: steps between checkpoints, a multiple of `log_every`.
    keep: number of newest checkpoints that stay, or a `pr.engine.Retention`;
      None for all.
    progress: whether to show a progress bar, or lines where no terminal is.
    loggers: functions of a `loggers.Run`, which get each record.

  Returns:
    The summary: the last record, with the label and the machine.

  Raises:
    ValueError: if the parts do not fit, or another run is in the directory.
    NonFinite: if the loss is no number; it is a ValueError.

  Example:
    >>> import optax
    >>> import prsgd_jax as pr
    >>> from prsgd_jax import models
    >>> summary = run(
    ...   algorithm=pr.pr_sgd(optax.sgd(0.05), period=4),
    ...   model=models.MLP(num_classes=10, hidden=(32,)),
    ...   data=pr.load_dataset('digits'),
    ...   num_replicas=8,
    ...   num_steps=200,
    ...   workdir='runs/own',
    ... )  # doctest: +SKIP
  """
  intervals = Intervals(log_every, eval_every, checkpoint_every)
  intervals.check()
  _check(algorithm, num_steps, label, settings)
  train, test = _splits(data, test_data)
  task = _task(model, train, test)
  arrays = partition(
    train, batch_size=batch_size, seed=seed, transform=transform
  )
  check_data(arrays, num_replicas)
  sizes = {
    'num_replicas': num_replicas,
    'batch_size': batch_size,
    'seed': seed,
  }
  description = {
    'algorithm': label,
    'options': dict(settings or {}),
    **sizes,
    'data': fingerprint((train, test)),
  }
  trainer = pr.trainer(
    algorithm,
    task.loss_fn,
    num_replicas=num_replicas,
    eval_fn=task.eval_fn,
    num_devices=num_devices,
  )
  shapes = trainer.shapes(*point_shapes(task.init, train))
  parts = Parts(
    label=label,
    description=description,
    called_with={**sizes, 'num_steps': num_steps, **intervals._asdict()},
    data=arrays,
    test=None if task.eval_fn is None else test,
    batch_size=batch_size,
    seed=seed,
    init=task.init,
    plan=Plan(algorithm, _schedule(learning_rate), num_steps),
    trainer=trainer,
    network=network,
    meter=pr.ledger.meter(algorithm, shapes, num_replicas, num_steps, network),
  )
  directory = pathlib.Path(workdir)
  with runs.hold(directory):
    runs.open_workdir(parts, directory, intervals, resume=True)
    return runs.execute(
      parts,
      directory,
      intervals,
      progress=progress,
      more_loggers=loggers,
      keep=retention.check(retention.ALL if keep is None else keep),
    )


def _check(
  algorithm: object, num_steps: object, label: object, settings: object
) -> None:
  """Raise ValueError if an argument is none that a run can be kept by."""
  if not isinstance(algorithm, pr.base.ReplicaTransformation):
    raise ValueError(
      'algorithm must be one of prsgd_jax, such as pr.pr_sgd(tx, period=4), '
      f'got {algorithm!r}'
    )
  if num_steps == 0:
    raise ValueError('num_steps must be >= 1, got 0')
  if not isinstance(label, str) or not label:
    raise ValueError(f'label must be a text, got {label!r}')
  try:
    json.dumps(settings, allow_nan=False)
    kept = settings is None or all(isinstance(n, str) for n in dict(settings))  # type: ignore[call-overload]
  except (TypeError, ValueError):
    kept = False
  if not kept:
    raise ValueError(
      f'settings must be a dict of finite JSON types by name, got {settings!r}'
    )


def _schedule(
  learning_rate: float | optax.Schedule | None,
) -> optax.Schedule | None:
  """The learning rate of a step; a number, of NumPy's too, is constant."""
  if learning_rate is None or callable(learning_rate):
    return learning_rate
  if isinstance(learning_rate, numbers.Real) and math.isfinite(learning_rate):
    return optax.constant_schedule(float(learning_rate))
  raise ValueError(
    'learning_rate must be a finite number or a function of the step, got '
    f'{learning_rate!r}'
  )


def _splits(data: Any, test_data: Any) -> tuple[Any, Any]:
  """(train, test) as trees of NumPy arrays.

  Raises:
    ValueError: if the arrays of one have several lengths, or none.
  """
  if isinstance(data, pr.data.Dataset):
    if test_data is not None:
      raise ValueError(
        'data is a Dataset with a test split; leave out test_data'
      )
    if data.is_streamed:
      raise ValueError(
        'data is a streamed Dataset, but run places its data on the devices; '
        'load it without stream=True, or pass it to pr.trainer as '
        'pr.pipeline(data.train, ...)'
      )
    data, test_data = data.train, data.test
  found = (
    own_data.as_arrays('data', data),
    own_data.as_arrays('test_data', test_data),
  )
  for name, split in zip(('data', 'test_data'), found):
    sizes = {x.shape[:1] for x in jax.tree.leaves(split)}
    empty = name == 'test_data' and split is None
    if not empty and (len(sizes) != 1 or sizes <= {(), (0,)}):
      raise ValueError(
        f'{name} must be a tree of arrays of one length >= 1, got lengths '
        f'{sorted(sizes)}'
      )
  return found


def _check_same_examples(train: Any, test: Any) -> None:
  """Raise ValueError unless both splits are of examples of one shape."""
  if test is None:
    return
  one, other = (
    {
      jax.tree_util.keystr(path): x.shape[1:]
      for path, x in jax.tree_util.tree_leaves_with_path(split)
    }
    for split in (train, test)
  )
  if one != other:
    raise ValueError(
      'data and test_data must have arrays of the same names and shapes, got '
      f'{one} and {other}'
    )


def _task(model: nn.Module | Task, train: Any, test: Any) -> Task:
  if isinstance(model, Task):
    return model
  if not isinstance(model, nn.Module):
    raise ValueError(
      f'model must be a flax linen module or a Task, got {model!r}'
    )
  is_text = isinstance(train, dict) and 'text' in train
  is_labeled = isinstance(train, dict) and {'image', 'label'} <= set(train)
  if not is_text and not is_labeled:
    raise ValueError(
      'data of a flax module must have the arrays image and label, or text; '
      'for others give a Task as model'
    )
  splits = (
    {'data': train}
    if test is None
    else {
      'data': train,
      'test_data': test,
    }
  )
  _check_same_examples(train, test)
  for name, split in splits.items():
    own_data.check_split(name, split)
  num_classes = _num_classes(model, train)
  for name, split in splits.items():
    own_data.check_classes(name, split, num_classes)
  return language_model(model) if is_text else classifier(model)


def _num_classes(model: nn.Module, train: Any) -> int:
  """The number of logits that a model returns for an example.

  Raises:
    ValueError: if it returns something else.
  """
  if 'text' in train:
    length = train['text'].shape[1] - 1
    inputs = jax.ShapeDtypeStruct((1, length), train['text'].dtype)
    wanted: tuple[int, ...] = (1, length)
  else:
    image = train['image']
    inputs = jax.ShapeDtypeStruct((1, *image.shape[1:]), image.dtype)
    wanted = (1,)
  logits, _ = jax.eval_shape(
    lambda x: model.init_with_output(
      jax.random.key(0), x, **mode(model, train=False)
    ),
    inputs,
  )
  shape = getattr(logits, 'shape', None)
  if shape is None or shape[:-1] != wanted:
    raise ValueError(
      f'model must return logits [{", ".join(map(str, wanted))}, num_classes] '
      f'for one example, got {shape or type(logits).__name__}'
    )
  return int(shape[-1])
