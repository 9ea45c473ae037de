"""PIXELS: mean and deviation of the channels of streamed images.

To decode 60000 PNG images takes more than ten seconds, so the result is cached
beside the data set, in `<data_dir>/<name>/.prsgd_jax-<version>-pixels.json`. It
is used only while no file of the data set has changed. It may be deleted at any
time.
"""

import contextlib
import json
import os
import pathlib
import secrets

from absl import logging
import numpy as np

from prsgd_jax.data import augmentation
from prsgd_jax.data.datasets import storage
from prsgd_jax.data.datasets.records import Records
from prsgd_jax.data.sources import Source

Statistics = tuple[np.ndarray, np.ndarray]


def statistics(source: Source) -> Statistics:
  """Return `augmentation.source_statistics`, cached for prepared data sets.

  Args:
    source: examples with an `image`.

  Returns:
    (mean, std), float32[channels].

  Raises:
    DataError: if an example cannot be read.
  """
  if not isinstance(source, Records):
    return augmentation.source_statistics(source)
  directory = source.directory
  path = directory.parent / f'.prsgd_jax-{directory.name}-pixels.json'
  fingerprint = storage.fingerprint(directory)
  found = _read(path, fingerprint)
  if found is None:
    found = augmentation.source_statistics(source)
    _write(path, fingerprint, found)
  return found


def _read(path: pathlib.Path, fingerprint: str) -> Statistics | None:
  """Return cached statistics, None if they are absent, old or damaged."""
  try:
    cached = json.loads(path.read_text())
    if cached['fingerprint'] != fingerprint:
      return None
    mean, std = (np.array(cached[n], np.float32) for n in ('mean', 'std'))
    return mean, std
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _write(path: pathlib.Path, fingerprint: str, found: Statistics) -> None:
  mean, std = (x.astype(float).tolist() for x in found)
  text = json.dumps({'fingerprint': fingerprint, 'mean': mean, 'std': std})
  temporary = path.with_name(f'{path.name}.{secrets.token_hex(8)}')
  try:
    temporary.write_text(text)
    os.replace(temporary, path)
  except OSError as error:
    logging.warning(
      'cannot write %s (%s): the pixels will be read again next time',
      path,
      storage.one_line(error),
    )
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
