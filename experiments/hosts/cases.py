"""The algorithms that are measured on several hosts, their models and data."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.models.classification import Task, classifier

LEARNING_RATE, MOMENTUM = 0.05, 0.9
# Small, because the processors of one machine may have to serve all hosts.
BATCH_SIZE = 8
HIDDEN = (512, 512)  # 301,066 parameters, 1.2 MB
SEED = 0

SGD = optax.sgd(LEARNING_RATE, MOMENTUM)


class Case(NamedTuple):
  """An algorithm to measure.

  Attributes:
    label: name in tables and figures, unique.
    method: name of the algorithm, for its color.
    algorithm: the algorithm.
    period: steps after which its communication repeats.
  """

  label: str
  method: str
  algorithm: pr.base.ReplicaTransformation
  period: int


# The first case never communicates, and shows the time of the computation.
CASES = (
  Case('no communication', 'none', pr.chain(pr.step(SGD)), 1),
  Case('SSGD', 'ssgd', pr.ssgd(SGD), 1),
  Case('PR-SGD, I = 4', 'pr_sgd', pr.pr_sgd(SGD, period=4), 4),
  Case('PR-SGD, I = 16', 'pr_sgd', pr.pr_sgd(SGD, period=16), 16),
  Case(
    'Hier-AVG, 4 and 16',
    'hier_avg',
    pr.hier_avg(SGD, local_period=4, global_period=16, group_size=2),
    16,
  ),
  Case('D-PSGD, ring', 'd_psgd', pr.d_psgd(SGD), 1),
  Case(
    'D-PSGD, one peer',
    'd_psgd',
    pr.d_psgd(SGD, mixing=pr.graphs.one_peer_exponential()),
    2,
  ),
  Case('DiLoCo, H = 16', 'diloco', pr.diloco(SGD, period=16), 16),
  Case('QSGD, 8 bits', 'qsgd', pr.qsgd(SGD, levels=127), 1),
)


class Workload(NamedTuple):
  """A model and data to train by some cases.

  Attributes:
    name: value of --workload.
    model: the model.
    enlarge: function that enlarges the images of the digits.
    batch_size: examples of a replica in a step.
    cases: the cases; the first one never communicates.
    tested: whether to evaluate the averaged model after each block.
  """

  name: str
  model: nn.Module
  enlarge: Callable[[np.ndarray], np.ndarray]
  batch_size: int
  cases: tuple[Case, ...]
  tested: bool

  @property
  def suffix(self) -> str:
    """Suffix of the names of its files of measurements."""
    return '' if self.name == 'mlp' else f'-{self.name}'

  @property
  def command(self) -> str:
    """Command that measures it."""
    option = '' if self.name == 'mlp' else f' --workload={self.name}'
    return f'python experiments/hosts_benchmark.py{option}'

  def task(self) -> Task:
    """Return the model and its loss."""
    return classifier(self.model)

  def data(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the normalized training and test images of the digits."""
    digits = load_dataset('digits')
    mean, deviation = augmentation.channel_statistics(digits.train['image'])

    def normalized(split: Any) -> dict[str, np.ndarray]:
      image = augmentation.normalize(split['image'], mean, deviation)
      return {**split, 'image': self.enlarge(np.asarray(image))}

    return normalized(digits.train), normalized(digits.test)

  def start(self) -> tuple[Any, Any]:
    """Return the first parameters and model state."""
    images = {'image': self.enlarge(np.zeros((1, 8, 8, 1), np.float32))}
    return jax.jit(self.task().init)(jax.random.key(SEED), images)

  def shapes(self) -> pr.base.Replica:
    """Return the shapes of one replica, for the ledger."""
    params, model_state = jax.eval_shape(self.start)
    return pr.base.Replica(params=params, model_state=model_state)


def _as_photographs(images: np.ndarray, size: int) -> np.ndarray:
  """Return square images of a number of pixels, with three channels."""
  factor = size // images.shape[1]
  larger = images.repeat(factor, axis=1).repeat(factor, axis=2)
  return np.broadcast_to(larger, (len(images), size, size, 3))


PERCEPTRON = Workload(
  name='mlp',
  model=models.MLP(10, hidden=HIDDEN),
  enlarge=lambda images: images,
  batch_size=BATCH_SIZE,
  cases=CASES,
  tested=True,
)
# The networks of the headline figure. The images have the same shape,
# because times depend on shapes only.
RESNET8 = Workload(
  name='resnet8',
  model=models.ResNet20(10, blocks_per_stage=1),
  enlarge=functools.partial(_as_photographs, size=16),
  batch_size=32,
  cases=CASES[:2],
  tested=False,
)
RESNET20 = RESNET8._replace(
  name='resnet20',
  model=models.ResNet20(10),
  enlarge=functools.partial(_as_photographs, size=32),
)
WORKLOADS = {x.name: x for x in (PERCEPTRON, RESNET8, RESNET20)}
