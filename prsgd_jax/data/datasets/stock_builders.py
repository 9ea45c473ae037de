"""STOCK BUILDERS of TFDS, which generate given arrays, not read archives.

TFDS' own builders need tensorflow to open archives and to encode PNG. Here
Pillow encodes, and the Image feature receives the finished bytes. Features,
version and keys do not change, so the directory is equal to the one TFDS would
write, in its (shuffled) order.
"""

from collections.abc import Iterator, Mapping
import io
from typing import Any

import numpy as np

from prsgd_jax.data.datasets import storage

# The classes of CIFAR-10, in the order of its `batches.meta.txt`.
_CIFAR10_CLASSES = (
  'airplane', 'automobile', 'bird', 'cat', 'deer',
  'dog', 'frog', 'horse', 'ship', 'truck',
)  # fmt: skip


def make_builder(name: str, splits: Mapping[str, storage.Split]) -> Any:
  """Return a subclass of the stock TFDS builder that generates `splits`.

  Args:
    name: `cifar10`, `fashion_mnist`, `mnist` or `text`.
    splits: Split name -> `{'image': uint8[n, h, w, c], 'label': int[n]}`, or
      `{'text': uint8[1, n]}`.
  """
  storage.import_tfds()
  from tensorflow_datasets.datasets.tiny_shakespeare import (
    tiny_shakespeare_dataset_builder as tiny_shakespeare,
  )
  from tensorflow_datasets.image_classification import cifar, mnist

  stocks = {
    'cifar10': cifar.Cifar10,
    'fashion_mnist': mnist.FashionMNIST,
    'mnist': mnist.MNIST,
    'text': tiny_shakespeare.Builder,
  }
  stock: Any = stocks[name]

  class FromArrays(stock, skip_registration=True):  # type: ignore[call-arg]
    """The stock builder, with arrays as the source."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      del dl_manager
      if name == 'cifar10':
        self.info.features['label'].names = list(_CIFAR10_CLASSES)
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[Any]:
      if name == 'text':
        yield split, {'text': splits[split]['text'][0].tobytes()}
        return
      images, labels = splits[split]['image'], splits[split]['label']
      for i, (image, label) in enumerate(zip(images, labels)):
        example = {'image': _png(image), 'label': int(label)}
        if name == 'cifar10':
          example['id'] = f'{split}_{i:05d}'
        # By index, because the key decides the place in TFDS' shuffle.
        yield i, example

  FromArrays.name = stock.name
  FromArrays.__module__ = stock.__module__  # because TFDS records it
  return FromArrays


def _png(image: np.ndarray) -> bytes:
  from PIL import Image

  buffer = io.BytesIO()
  picture = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(picture).save(buffer, 'PNG')
  return buffer.getvalue()
