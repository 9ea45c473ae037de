"""The cases of `benchmark.py`: models, their data, and lengths of blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import models
from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import load_dataset
from prsgd_jax.data.samplers import Transform
from prsgd_jax.data.values import Resident
from prsgd_jax.models.classification import Task, classifier

LEARNING_RATE, MOMENTUM = 0.01, 0.9
# Steps between averages.
PERIOD = 8
BATCH_SIZE = 32
# Examples of made images. Enough for several epochs of no replica to be equal.
MADE = 2048
# Steps whose rows the peers get; they begin again after the last one.
TABLE = 256


class Case(NamedTuple):
  """What is trained, and in which portions.

  Attributes:
    name: name of the case.
    model: the model.
    data: `image`, uint8[n, height, width, channels], and `label`, int32[n].
    num_replicas: N.
    dispatch: steps of a dispatch, in programs that scan over steps.
    checked: steps after which all contestants must have equal parameters, a
      multiple of `dispatch` and of the period.
    tolerance: the largest difference of parameters that counts as equal.
    block_seconds: seconds that one turn of a contestant takes.
    convolves: whether the model has convolutions of XLA, which are slow inside
      a loop and with an axis of replicas on CPU.
    is_streamed: whether streamed data are compared with resident data.
  """

  name: str
  model: nn.Module
  data: dict[str, np.ndarray]
  num_replicas: int
  dispatch: int
  checked: int
  tolerance: float
  block_seconds: float = 0.3
  convolves: bool = False
  is_streamed: bool = False


NAMES = (
  'mlp2', 'mlp8', 'lenet2', 'resnet2', 'resnet8', 'mlp2_streamed',
  'resnet2_streamed',
)  # fmt: skip


def make_case(name: str, data_dir: str | None) -> Case:
  """Return a case by name.

  The MLP trains on the digits. LeNet-5 gets made images in the shape of MNIST,
  and ResNet-20 in that of CIFAR-10, so that no download is necessary.

  Args:
    name: one of `NAMES`.
    data_dir: directory of the data sets.

  Raises:
    ValueError: if no case has this name.
  """
  if name not in NAMES:
    raise ValueError(f'unknown case {name!r}; use {", ".join(NAMES)}')
  base, _, streamed = name.partition('_')
  kind, num_replicas = base[:-1], int(base[-1])
  if kind == 'mlp':
    digits = load_dataset('digits', data_dir).train
    case = Case(name, models.MLP(10), digits, num_replicas, 64, 64, 1e-4)
  elif kind == 'lenet':
    images = _images(28, 28, 1)
    case = Case(name, models.LeNet5(10), images, num_replicas, 16, 16, 1e-3)
  else:
    images = _images(32, 32, 3)
    dispatch = 2 if num_replicas == 2 else 1
    case = Case(
      name, models.ResNet20(10), images, num_replicas, dispatch, 8, 1e-3,
      convolves=True,
    )  # fmt: skip
  if streamed:
    # Long, because the stream reads ahead in the turn of the other contestant.
    return case._replace(block_seconds=2.0, is_streamed=True)
  return case


def _images(*shape: int) -> dict[str, np.ndarray]:
  """Return noisy images of ten classes, each class around its pattern."""
  rng = np.random.default_rng(0)
  label = rng.integers(10, size=MADE).astype(np.int32)
  patterns = rng.normal(128, 32, size=(10, *shape))
  noisy = rng.normal(patterns[label], 32)
  return {'image': noisy.clip(0, 255).astype(np.uint8), 'label': label}


def optimizer() -> optax.GradientTransformation:
  """Return the optimizer of all contestants."""
  return optax.sgd(LEARNING_RATE, momentum=MOMENTUM)


def task(case: Case) -> Task:
  """Return the loss of a case."""
  return classifier(case.model)


def normalize(case: Case) -> Transform:
  """Return the transform that normalizes a batch of a case."""
  pixels = augmentation.channel_statistics(case.data['image'])

  def transform(key: jax.Array, batch: Any) -> Any:
    del key
    return {**batch, 'image': augmentation.normalize(batch['image'], *pixels)}

  return transform


def resident(case: Case) -> Resident:
  """Return the data of a case, normalized float32, for the devices."""
  arrays = normalize(case)(jax.random.key(0), case.data)
  arrays = {name: np.asarray(x) for name, x in arrays.items()}
  return pr.shared(arrays, batch_size=BATCH_SIZE)


def rows(case: Case) -> np.ndarray:
  """Return the examples of the first batches, int32[TABLE, N, batch]."""
  n = len(case.data['label'])
  data = pr.shared({'row': jnp.arange(n)}, batch_size=BATCH_SIZE)
  batch_fn = data.recipe.make(case.num_replicas)
  key = jax.random.key(0)  # not used, because nothing is augmented

  @jax.jit
  def table() -> Any:
    steps, replicas = jnp.arange(TABLE), jnp.arange(case.num_replicas)
    return jax.vmap(
      lambda step: jax.vmap(
        lambda replica: batch_fn(data.arrays, step, replica, key)['row']
      )(replicas)
    )(steps)

  return np.asarray(table(), np.int32)


def initial(case: Case) -> Any:
  """Return (params, model_state), from which all contestants start."""
  image = jnp.zeros((1, *case.data['image'].shape[1:]))
  return jax.jit(task(case).init)(jax.random.key(0), {'image': image})


def initial_loss(case: Case) -> float:
  """Return the mean loss of the first batches at the initial point."""
  data = resident(case)
  batch_rows = rows(case)[0].reshape(-1)
  batch = {name: x[batch_rows] for name, x in data.arrays.items()}
  loss, _ = jax.jit(task(case).loss_fn)(
    *initial(case), batch, jax.random.key(0)
  )
  return float(loss)


def flat(params: Any) -> dict[str, np.ndarray]:
  """Return parameters by names such as 'Dense_0/kernel'."""
  found = traverse_util.flatten_dict(params, sep='/')
  return {name: np.asarray(x) for name, x in found.items()}


def mean(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Return the means of arrays with equal names."""
  return {name: np.mean([x[name] for x in parts], 0) for name in parts[0]}
