"""The measurements, in the order that shows most first."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from prsgd_jax import models
from prsgd_jax.engine.block_mapping import BLOCKS
from prsgd_jax.models.classification import Task, classifier
from prsgd_jax.models.language_modeling import language_model

VMAP, LOOP, UNROLLED, GROUPED = 'vmap', 'loop', 'unrolled', 'grouped'
# The library's trainer, with its default and with each `block=`.
ENGINE = 'engine'
ENGINES = tuple(f'{ENGINE}, {way}' for way in BLOCKS)
WAYS = (VMAP, GROUPED, UNROLLED, LOOP)
DENSE_WAYS = (VMAP, UNROLLED, LOOP)  # because only convolutions have groups
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
RESNET, MLP, TRANSFORMER = 'resnet20', 'mlp', 'transformer'
REPLICAS = (1, 2, 4, 8, 16, 32)
STEPS = (1, 2, 4, 8, 16, 32, 64)
# Steps in a dispatch, where they are not what is compared.
DISPATCH = 16


class Case(NamedTuple):
  """One loop to measure.

  Attributes:
    model: name of the model.
    way: how the replicas of the device are computed: one of `WAYS`, `ENGINE`
      or `ENGINES`.
    num_replicas: N, all on one device.
    batch_size: examples per replica and step.
    dtype: name of the type of the computation.
    num_steps: steps in a dispatch.
  """

  model: str
  way: str
  num_replicas: int
  batch_size: int
  dtype: str
  num_steps: int = DISPATCH

  @property
  def name(self) -> str:
    """Name in the file of results, unique."""
    size = f'{self.num_replicas}x{self.batch_size}'
    return f'{self.model} {self.dtype} {size} {self.way} {self.num_steps} steps'


class Size(NamedTuple):
  """Sizes of the models and of their data.

  Attributes:
    pixels: width of the images.
    blocks: blocks of ResNet-20 in each stage.
    hidden: hidden layers of the MLP.
    width: width of the transformer.
    layers: blocks of the transformer.
    length: characters of a sequence.
    num_examples: examples on the device.
  """

  pixels: int
  blocks: int
  hidden: tuple[int, ...]
  width: int
  layers: int
  length: int
  num_examples: int


LARGE = Size(32, 3, (512, 512), 256, 4, 64, 8192)
TINY = Size(8, 1, (8,), 8, 1, 8, 64)
VOCABULARY, CLASSES = 65, 10


def all_cases(*, tiny: bool = False) -> list[Case]:
  """Return the cases, each once.

  Args:
    tiny: whether to shrink all numbers, so that a test takes seconds.
  """
  found = [
    *_ways(RESNET, 128),
    *_ways(RESNET, 32),
    *_engines(),
    *_scaling(),
    *_steps(),
    *_ways(TRANSFORMER, 32, DENSE_WAYS),
    *_ways(MLP, 128, DENSE_WAYS),
  ]
  if tiny:
    found = [_tiny(case) for case in found]
  return list(dict.fromkeys(found))


def _ways(
  model: str, batch_size: int, ways: Sequence[str] = WAYS
) -> list[Case]:
  """Return all ways of eight replicas, float32 before bfloat16."""
  return [
    Case(model, way, 8, batch_size, dtype)
    for dtype in DTYPES
    for way in (*ways, ENGINE)
  ]


def _engines() -> list[Case]:
  """Return the library's trainer by each way."""
  return [
    Case(RESNET, way, 8, 128, dtype) for dtype in DTYPES for way in ENGINES
  ]


def _scaling() -> list[Case]:
  """Return the numbers of replicas by the two ways of one program."""
  return [
    Case(RESNET, way, n, 128, 'bfloat16')
    for n in REPLICAS
    for way in (VMAP, GROUPED)
  ]


def _steps() -> list[Case]:
  """Return the numbers of steps in a dispatch of the library's trainer."""
  return [
    Case(model, ENGINE, 8, batch, 'float32', steps)
    for model, batch in ((RESNET, 32), (MLP, 128))
    for steps in STEPS
  ]


def _tiny(case: Case) -> Case:
  return case._replace(
    num_replicas=min(case.num_replicas, 2),
    batch_size=2 if case.batch_size < 128 else 3,
    num_steps=min(case.num_steps, 2),
  )


def make_model(name: str, dtype: str, size: Size) -> nn.Module:
  """Return a model by name.

  Args:
    name: 'resnet20', 'mlp' or 'transformer'.
    dtype: name of the type of the computation.
    size: its size.
  """
  kind = DTYPES[dtype]
  if name == RESNET:
    return models.ResNet20(CLASSES, blocks_per_stage=size.blocks, dtype=kind)
  if name == MLP:
    return models.MLP(CLASSES, hidden=size.hidden, dtype=kind)
  return models.Transformer(
    VOCABULARY,
    max_length=size.length,
    width=size.width,
    num_blocks=size.layers,
    dtype=kind,
  )


def make_task(case: Case, size: Size) -> Task:
  """Return the model of a case with its loss."""
  model = make_model(case.model, case.dtype, size)
  return (
    language_model(model) if case.model == TRANSFORMER else classifier(model)
  )


def inputs(
  case: Case, size: Size
) -> dict[str, tuple[tuple[int, ...], Any, int]]:
  """Return shape, type and number of values of the arrays of an example."""
  if case.model == TRANSFORMER:
    return {'text': ((size.length + 1,), jnp.uint8, VOCABULARY)}
  return {
    'image': ((size.pixels, size.pixels, 3), jnp.uint8, 256),
    'label': ((), jnp.int32, CLASSES),
  }
