"""Configuration of a run as a value, with its name and its length."""

from collections.abc import Mapping
import dataclasses
import hashlib
import itertools
import math
from typing import Any

import jax
import numpy as np

from experiments.running.flags import (
  algorithm_flags,
  averages,
  faults,
  named,
)
from experiments.running.records import slugs
import prsgd_jax as pr
from prsgd_jax.checks import MAX_STEPS
from prsgd_jax.data.datasets import Dataset

# Examples of streamed data that identify it.
FINGERPRINTED = 64
# Flags of single algorithms, and flags for an argument that many algorithms
# have: schedule, local step, average.
OPTIONS = (
  *algorithm_flags.FLAG_KINDS,
  'when',
  'local',
  *averages.OPTIONS,
  *faults.OPTIONS,
)
# Flags that may change together with --num_replicas, because they have a number
# for each replica or a bound that depends on their number.
FIT_REPLICAS = (
  'alpha',
  'buffer_size',
  'faults',
  'group_size',
  'group_sizes',
  'local_steps',
  'normalizers',
  'parents',
  'quorum',
  'replica_speeds',
  'speeds',
  'weights',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Values that determine the trajectory and the length of a run.

  A field has the meaning of the flag of its name.

  Attributes:
    options: flag -> value, for each option of the algorithm that is set. A
      keyword of the user's own algorithm has its own name.
    model_options: name -> text, for each option of the model; None for none.
    sizes: (first step, number of replicas) of a run in which the number of
      replicas changed, in order, up to `num_replicas`; () for any other run.
  """

  algorithm: str
  options: Mapping[str, Any]
  dataset: str
  text_file: str | None = None
  sequence_length: int | None = None
  stream: bool = False
  stream_processes: int = 0
  model: str
  model_options: Mapping[str, str] | None = None
  num_replicas: int
  batch_size: int
  partition: str
  dirichlet_alpha: float | None
  augment: bool
  learning_rate: float
  learning_rate_drops: tuple[float, ...]
  warmup_epochs: float = 0.0
  lr_schedule: str | None = None
  lr_end: float | None = None
  optimizer: str
  momentum: float
  nesterov: bool
  adam_b1: float | None = None
  adam_b2: float | None = None
  adam_eps: float | None = None
  clip_norm: float | None = None
  weight_decay: float
  label_smoothing: float | None = None
  dtype: str
  seed: int
  num_epochs: float
  num_steps: int | None
  sizes: tuple[tuple[int, int], ...] = ()

  def description(self, dataset: Dataset) -> dict[str, Any]:
    """Return the values that must be equal to resume a run.

    The length is included only if the algorithm, its schedule or the learning
    rate depends on it. Data are identified by their contents, not by a path.

    Args:
      dataset: data of the run.
    """
    fields = dataclasses.asdict(self)
    of_length = named.depends_on_length(self.options.get('when', ''))
    of_length |= 'num_steps' in algorithm_flags.keywords(self.algorithm)
    of_length |= self.lr_schedule not in (None, 'constant')
    if not of_length:
      del fields['num_epochs'], fields['num_steps']
    del fields['text_file'], fields['sizes'], fields['stream_processes']
    if not self.stream:  # as runs of earlier versions, which could not stream
      del fields['stream']
    return {**fields, 'data': fingerprint_of(dataset)}

  def own(self) -> tuple[str, ...]:
    """Return the values that may name the user's own objects."""
    return (self.algorithm, self.model, self.dataset)

  def label(self) -> str:
    """Return the algorithm with its options, such as 'pr_sgd period=4'."""
    names = [n for n in OPTIONS if n in self.options]
    names += [n for n in self.options if n not in OPTIONS]
    options = [f'{n}={self.options[n]}' for n in names]
    return ' '.join([self.algorithm, *options]).replace(',', '+')

  def slug(self) -> str:
    """Return the label as a directory name; a long one ends in a hash."""
    return slugs.shorten(self.label().replace(' ', '-').replace('=', ''))


def total_steps(config: RunConfig, num_examples: int) -> int:
  """Return the length of a run in steps.

  Args:
    config: the run.
    num_examples: number of training examples.

  Raises:
    ValueError: if the epochs exceed the largest number of steps.
  """
  if config.num_steps is not None:
    return config.num_steps
  steps = _steps(config, num_examples, config.num_epochs)
  if steps > MAX_STEPS:
    raise ValueError(
      f'--num_epochs must be at most 2**31 - 1 = {MAX_STEPS} steps, got '
      f'{config.num_epochs}, which is {steps:.3g} steps'
    )
  return int(steps)


def steps_of_epochs(config: RunConfig, num_examples: int, epochs: float) -> int:
  """Return the first step after a number of epochs, at most 2^31 - 1.

  Args:
    config: the run.
    num_examples: number of training examples.
    epochs: passes over the data.
  """
  return int(min(_steps(config, num_examples, epochs), MAX_STEPS))


def _steps(config: RunConfig, num_examples: int, epochs: float) -> float:
  begin, done = 0, 0.0
  for (first, n), (stop, _) in itertools.pairwise(config.sizes):
    passed = (stop - first) * n * config.batch_size / num_examples
    if epochs <= done + passed:
      return _rounded(first + (epochs - done) / passed * (stop - first))
    begin, done = stop, done + passed
  per_step = config.num_replicas * config.batch_size
  # Infinite for 1e308 epochs.
  return _rounded(begin + (epochs - done) * num_examples / per_step)


def _rounded(steps: float) -> float:
  return max(1, math.ceil(round(steps, 6))) if steps < 2**53 else steps


def warmup_steps(config: RunConfig, num_examples: int) -> int:
  """Return the number of steps in which the learning rate rises."""
  if not config.warmup_epochs:
    return 0
  return steps_of_epochs(config, num_examples, config.warmup_epochs)


def fingerprint_of(dataset: Dataset) -> str:
  """Return a digest of a dataset.

  Of a streamed one, it covers the number of examples and a few of them, because
  to read all would take as long as an epoch.

  Args:
    dataset: the dataset.
  """
  train = dataset.train
  if dataset.is_streamed:
    n = dataset.num_examples
    rows = np.unique(np.linspace(0, n - 1, FINGERPRINTED).astype(int))
    data = pr.pipeline(train, batch_size=1)
    train = n, data.read(rows, np.zeros((len(rows), 3), int))
  return fingerprint((train, dataset.test))


def fingerprint(data: Any) -> str:
  """Return a digest of the shapes and contents of arrays.

  Args:
    data: tree of arrays.
  """
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(data):
    array = np.asarray(leaf)
    digest.update(str(array.shape).encode())
    digest.update(array.tobytes())
  return digest.hexdigest()[:16]
