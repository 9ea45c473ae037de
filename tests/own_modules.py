"""A directory with a module of a user's own, in which a test works."""

import contextlib
import os
import pathlib
import sys
import tempfile
from unittest import mock

from experiments.running.flags import dotted

SOURCE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import prsgd_jax as pr
from prsgd_jax.models.classification import Task


def soft(local, *, period, strength: float = 1.0, note: str = ''):
  return pr.algorithm(
    'soft',
    pr.step(local),
    pr.at(
      pr.schedules.every(period),
      pr.let(xbar='params'),
      pr.sync(pr.mixing.mean(), 'xbar'),
      pr.let(params=lambda params, xbar: params + strength * (xbar - params)),
    ),
  )


def named(local, *, seed: int = 0, lr: float = 1.0):
  return pr.ssgd(local)


class Net(nn.Module):
  num_classes: int
  width: int = 8
  depth: int = 1

  @nn.compact
  def __call__(self, x):
    x = x.reshape((len(x), -1))
    for _ in range(self.depth):
      x = nn.relu(nn.Dense(self.width)(x))
    return nn.Dense(self.num_classes)(x)


def blobs():
  def split(seed, n):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n).astype(np.int32)
    image = rng.normal(size=(n, 5)) + 3 * label[:, None]
    return {'image': image.astype(np.float32), 'label': label}

  return pr.data.Dataset('blobs', split(0, 300), split(1, 90), 3)


def line():
  def split(seed, n):
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    return {'x': x, 'y': x @ np.float32([1, 2, 3])}

  return pr.data.Dataset('line', split(0, 64), split(1, 16), 0)


def squares():
  def errors(w, batch):
    return jnp.square(batch['x'] @ w - batch['y'])

  return Task(
    init=lambda key, batch: (jnp.zeros(3), {}),
    loss_fn=lambda w, s, batch, key: (errors(w, batch).mean(), (s, {})),
    eval_fn=lambda w, s, batch: {'loss': errors(w, batch)},
  )


class Read:
  def __init__(self, arrays, broken=None):
    self.arrays, self.broken = arrays, broken

  def __len__(self):
    return len(self.arrays['label'])

  def __getitem__(self, row):
    if row == self.broken:
      raise OSError('no such block')
    return {name: x[row] for name, x in self.arrays.items()}


def read(broken=None):
  known = blobs()
  return known._replace(train=Read(known.train, broken))


# Slips.
unreadable = lambda: read(17)
number = 3
no_task = lambda: Task(
  init=lambda key, batch: (jnp.zeros(3), {}),
  loss_fn=lambda w, s, batch, key: w.sum(),
  eval_fn=lambda w, s, batch: {'loss': w},
)
no_algorithm = lambda tx, *, period: tx
no_average = lambda tx, *, average: pr.k_avg(tx, period=2, average=average)
broken = lambda tx: pr.undefined
typed = lambda tx, *, when_asked: pr.ssgd(tx)


def odd(tx, *, table: dict = None):
  return pr.ssgd(tx)


class Wrong(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2)(x.reshape((len(x), -1)))


class Broken(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x @ x @ None


no_start = lambda: squares()._replace(init=lambda key, batch: jnp.zeros(3))
no_eval = lambda: squares()._replace(eval_fn=None)
counts = lambda: squares()._replace(
  init=lambda key, batch: (jnp.zeros(3, jnp.int32), {})
)


class Constant(nn.Module):
  @nn.compact
  def __call__(self, x):
    return jnp.zeros((len(x), 10))


def leaves():
  raise SystemExit(3)


def columns():
  column = lambda x: {**x, 'label': x['label'][:, None]}
  found = blobs()
  return found._replace(train=column(found.train), test=column(found.test))


def breaks_in_training():
  def loss_fn(w, s, batch, key):
    if batch['x'].shape[0] > 1:
      raise RuntimeError('a bad batch')
    return w.sum(), (s, {})

  return squares()._replace(loss_fn=loss_fn)


def uneven():
  return blobs()._replace(train={'image': np.ones((3, 2)), 'label': [1]})


def mislabeled():
  return blobs()._replace(num_classes=2)
"""


@contextlib.contextmanager
def directory(name):
  """Changes to a new directory that holds the module; yields its path."""
  before = os.getcwd()
  with tempfile.TemporaryDirectory() as path:
    root = pathlib.Path(path)
    (root / f'{name}.py').write_text(SOURCE)
    (root / f'{name}_slip.py').write_text('import numpy\nx = 1 / 0\n')
    (root / f'{name}_syntax.py').write_text('def f(:\n')
    (root / f'{name}_needs.py').write_text('import no_such_thing\n')
    with (
      mock.patch.object(sys, 'path', [*sys.path]),
      mock.patch.object(dotted, '_directories', {}),
    ):
      os.chdir(root)
      try:
        yield root
      finally:
        os.chdir(before)
        # No others: a dataset of TFDS can't be imported a second time.
        for module in [m for m in sys.modules if m.startswith(name)]:
          del sys.modules[module]
