"""TEXTS as sequences of characters; Tiny Shakespeare, without a network.

The text is a million characters of Shakespeare's plays, collected for char-rnn.
The package holds it, compressed. A character is a token. The vocabulary is
fixed: the characters of this text.

Reference: Karpathy, The unreasonable effectiveness of recurrent neural
networks, 2015, https://github.com/karpathy/char-rnn.
"""

import functools
import string

import numpy as np

from prsgd_jax.data.datasets import storage

VOCABULARY = "\n !$&',-.3:;?" + string.ascii_uppercase + string.ascii_lowercase

# The SHA-256 that TFDS publishes for its `tiny_shakespeare`.
_SHA256 = '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'
_FILE = 'tiny_shakespeare.txt.gz'


@functools.cache
def shakespeare_splits() -> dict[str, storage.Split]:
  """Return the splits by name, consecutive: 90, 5 and 5 % of the text.

  The stock TFDS builder has the same splits.

  Returns:
    `train`, `validation` and `test`, each `{'text': uint8[1, n]}`, one example
    of n ASCII codes, with n = 1003854, 55770 and 55770.

  Raises:
    DatasetError: The file of the package is missing or damaged.
  """
  text = storage.read_embedded(_FILE, _SHA256)
  codes = np.frombuffer(text, np.uint8)[np.newaxis]
  train = int(len(text) * 0.9)
  validation = train + (len(text) - train) // 2
  parts = np.split(codes, [train, validation], axis=1)
  names = ('train', 'validation', 'test')
  return {name: {'text': part} for name, part in zip(names, parts)}


def encode(text: str) -> np.ndarray:
  """Return the indices of characters in `VOCABULARY`, uint8[n].

  Args:
    text: n characters.

  Example:
    >>> encode('A b').tolist()
    [13, 1, 40]

  Raises:
    DatasetError: A character is not in the vocabulary.
  """
  codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  known = np.array([ord(c) for c in VOCABULARY], np.uint32)
  found = np.searchsorted(known, codes).clip(max=len(known) - 1)
  if (wrong := known[found] != codes).any():
    raise storage.DatasetError(
      f'the vocabulary has no {text[int(wrong.argmax())]!r}; it has'
      f' {VOCABULARY!r}'
    )
  return found.astype(np.uint8)


def decode(tokens: np.ndarray) -> str:
  """Return the text of indices into `VOCABULARY`; the inverse of `encode`.

  Args:
    tokens: uint8[n].

  Example:
    >>> decode(encode('A b'))
    'A b'
  """
  return ''.join(VOCABULARY[token] for token in tokens)


def cut(tokens: np.ndarray, length: int) -> np.ndarray:
  """Cut a text into sequences of `length` predictions.

  A sequence begins with the last character of the previous one, so that every
  character except the first is predicted once. A remainder is dropped.

  Example:
    >>> cut(np.arange(8, dtype=np.uint8), length=3)
    array([[0, 1, 2, 3],
           [3, 4, 5, 6]], dtype=uint8)

  Args:
    tokens: uint8[n], n > `length`.
    length: Characters that a model reads, and predicts, in a sequence.

  Returns:
    uint8[(n - 1) // length, length + 1].

  Raises:
    DatasetError: `length` is not in 1..n - 1.
  """
  if not 1 <= length < len(tokens):
    raise storage.DatasetError(
      f'the length of the sequences must be in 1..{len(tokens) - 1}, got'
      f' {length}'
    )
  windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
  return np.ascontiguousarray(windows[::length])
