"""A process of `checkpoint_processes_test`: saves and restores with another.

python -m tests.checkpoint_processes PORT PROCESS DIRECTORY
"""

import contextlib
import errno
import json
import os
import pathlib
import signal
import sys
from unittest import mock

import jax
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax.engine import checkpoint_arrays, checkpoints

N, PROCESSES, DIMENSION = 4, 2, 1000
DESCRIPTION = {'algorithm': 'pr_sgd'}


def loss_fn(params, model_state, batch, key):
  loss = jax.numpy.square(params - batch).mean()
  return loss + jax.random.normal(key), (model_state, {})


def make_trainer():
  # With momentum and different replicas, so that a swapped row is noticed.
  algorithm = pr.pr_sgd(optax.sgd(0.1, momentum=0.9), period=3)
  return pr.trainer(algorithm, loss_fn, num_replicas=N)


def make_data():
  rng = np.random.default_rng(0)
  arrays = rng.normal(size=(64, DIMENSION)).astype(np.float32)
  return pr.sharded(arrays, batch_size=2)


def first_state(trainer):
  rng = np.random.default_rng(1)
  points = rng.normal(size=(N, DIMENSION)).astype(np.float32)
  return trainer.init(points, seed=5, per_replica=True)


def on_host(trainer, state):
  """All leaves of a state, of all replicas."""
  own = state.on_devices
  fields = (own.params, own.opt_state, own.algorithm_state)
  gathered = trainer.mesh.gather(fields)
  key = np.asarray(jax.random.key_data(own.key).addressable_shards[0].data)
  return [np.asarray(x) for x in (*jax.tree.leaves(gathered), key[0])]


def message(error, call, *args):
  """The message of the error that a call raises."""
  try:
    call(*args)
  except error as caught:
    return str(caught)
  raise AssertionError('it did not fail')


def refuse_one(process):
  """A full disk for one process."""
  if jax.process_index() != process:
    return contextlib.nullcontext()
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return mock.patch.object(checkpoint_arrays, 'write', side_effect=full)


def main(port, process, root):
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 1)
  jax.distributed.initialize(f'localhost:{port}', PROCESSES, process)
  trainer, data = make_trainer(), make_data()
  like, said = first_state(trainer), {}

  # Of one process, onto two.
  state = trainer.restore(root / 'of_one', like, DESCRIPTION)
  np.savez(root / f'restored{process}', *on_host(trainer, state))

  # In the background, while the next steps overwrite the buffers.
  state, _ = trainer.run(state, data, 2)
  np.savez(root / f'saved{process}', *on_host(trainer, state))
  step = state.step
  saved = trainer.save_in_background(root / 'of_two', state, DESCRIPTION)
  state, _ = trainer.run(state, data, 2)
  said['path'] = str(saved.result())
  again = trainer.restore(root / 'of_two', like, DESCRIPTION, step)
  np.savez(root / f'again{process}', *on_host(trainer, again))

  # Errors of one process are errors of both.
  def save(directory):
    trainer.save(directory, state, DESCRIPTION)

  failed = checkpoints.SaveError
  for other in range(PROCESSES):
    with refuse_one(other):
      said[f'full{other}'] = message(failed, save, root / 'of_two')
  own = root / f'own{process}'
  said['not shared'] = message(failed, save, own)
  said['twice'] = message(
    checkpoints.CheckpointError, trainer.save, root / 'of_two', again,
    DESCRIPTION,
  )  # fmt: skip
  said['missing'] = message(
    checkpoints.CheckpointError, trainer.restore, root / 'only0' / f'{process}',
    like, DESCRIPTION,
  )  # fmt: skip
  said['another'] = message(
    checkpoints.CheckpointError, trainer.restore,
    root / ('of_one', 'another')[process], like, DESCRIPTION,
  )  # fmt: skip
  (root / f'said{process}.json').write_text(json.dumps(said))

  # Process 1 is killed while it writes.
  if process == 1:
    write = checkpoint_arrays.write

    def killed(*args):
      write(*args)
      os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_arrays.write = killed
  save(root / 'of_two')


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))
