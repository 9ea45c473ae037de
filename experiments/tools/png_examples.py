"""Images that are decoded when they are read, as those of TFDS are."""

import io
from typing import Any

import numpy as np
from PIL import Image


class PngExamples:
  """Labeled images as a source of examples, each a PNG file in memory.

  Args:
    arrays: `image`, uint8[n, h, w, 3], and `label`, int32[n].

  Example:
    >>> images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    >>> source = PngExamples({'image': images, 'label': np.arange(2)})
    >>> np.array_equal(source[1]['image'], images[1])
    True
  """

  def __init__(self, arrays: dict[str, np.ndarray]):
    self.files = [_encode(image) for image in arrays['image']]
    self.labels = arrays['label']

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, row: int) -> dict[str, Any]:
    image = np.asarray(Image.open(io.BytesIO(self.files[row])))
    return {'image': image, 'label': self.labels[row]}


def _encode(image: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'png')
  return file.getvalue()
