"""Tests of `prsgd_jax.checkpoints`."""

import hashlib
import pathlib
import shutil
import tempfile

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import prsgd_jax as pr
from prsgd_jax import checkpoints
from prsgd_jax.checkpoints import CheckpointError

DESCRIPTION = {'algorithm': 'pr_sgd', 'sizes': (1, 2)}


def pr_sgd():
  return pr.pr_sgd(optax.sgd(0.1, momentum=0.9), period=4)


def make(num_devices, *, num_replicas=8, algorithm=None, width=4):
  mesh = pr.ReplicaMesh(num_replicas, num_devices)
  rng = np.random.default_rng(0)
  params = {
    'w': rng.normal(size=(num_replicas, 3, width)).astype(np.float32),
    'half': {'b': jnp.asarray(rng.normal(size=(num_replicas,)), jnp.bfloat16)},
  }
  model_state = {'count': np.arange(num_replicas)}
  return mesh, pr.create_train_state(
    mesh, algorithm or pr_sgd(), params, model_state, seed=3, per_replica=True
  )


def on_host(mesh, state):
  """All that a state holds, as it does not depend on the devices."""
  fields = (state.params, state.opt_state, state.model_state)
  key = jax.random.key_data(state.key)
  gathered = mesh.gather((fields, state.algorithm_state))
  return gathered, np.asarray(state.step[0]), np.asarray(key[0])


class CheckpointsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(root) / 'saved'

  def save(self, num_devices=2, **kwargs):
    mesh, state = make(num_devices, **kwargs)
    return checkpoints.save(self.directory, mesh, state, DESCRIPTION), state

  def digest(self):
    """Of all files of the directory and their contents."""
    out = hashlib.sha256()
    for path in sorted(self.directory.rglob('*')):
      out.update(str(path).encode())
      out.update(path.read_bytes() if path.is_file() else b'')
    return out.hexdigest()

  def refused(self, pattern, mesh, like, description=None):
    before = self.digest()
    with self.assertRaisesRegex(CheckpointError, pattern) as caught:
      checkpoints.restore(
        self.directory, mesh, like, description or DESCRIPTION
      )
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(self.digest(), before)

  @parameterized.product(saved_on=[1, 2, 8], restored_on=[1, 4, 8])
  def test_restores_bit_for_bit_onto_any_devices(self, saved_on, restored_on):
    _, state = self.save(saved_on)
    saved = on_host(pr.ReplicaMesh(8, saved_on), state)
    mesh, like = make(restored_on)
    like = like.replace(params=jax.tree.map(jnp.zeros_like, like.params))
    restored = checkpoints.restore(self.directory, mesh, like, DESCRIPTION)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      restored, mesh.map(lambda state: state)(like)
    )
    chex.assert_trees_all_equal(on_host(mesh, restored), saved, strict=True)

  def test_restored_state_may_be_donated(self):
    self.save()
    mesh, like = make(2)
    state = checkpoints.restore(self.directory, mesh, like, DESCRIPTION)
    steps = pr.make_train_steps(
      mesh, pr_sgd(), lambda p, s, b, k: (jnp.square(p['w']).sum() * b, (s, {}))
    )
    for _ in range(3):
      state, _ = steps(state, np.ones((2, 5, 4), np.float32))
    self.assertEqual(int(state.step[0]), 15)

  def test_is_not_overwritten(self):
    self.save()
    before = self.digest()
    mesh, state = make(2)
    with self.assertRaisesRegex(CheckpointError, 'is not overwritten'):
      checkpoints.save(self.directory, mesh, state, DESCRIPTION)
    self.assertEqual(self.digest(), before)

  def test_newest_whole_one_is_used(self):
    path, state = self.save()
    self.assertEqual(checkpoints.steps(self.directory), [0])
    shutil.copytree(path, self.directory / '.7.partial')
    shutil.rmtree(self.directory / '.7.partial' / 'state')
    self.assertEqual(checkpoints.latest_step(self.directory), 0)
    mesh, like = make(2)
    restored = checkpoints.restore(self.directory, mesh, like, DESCRIPTION)
    np.testing.assert_array_equal(restored.params['w'], state.params['w'])

  def test_what_was_cut_off_does_not_hinder_saving(self):
    cut_off = self.directory / '.0.partial' / 'state'
    cut_off.mkdir(parents=True)
    (cut_off / 'half').write_bytes(b'12345')
    self.save()
    self.assertEqual(checkpoints.steps(self.directory), [0])
    self.refused('7', *make(2), {**DESCRIPTION, 'sizes': [1, 7]})

  @parameterized.parameters('flip', 'cut', 'empty', 'remove')
  def test_damage_of_any_file_is_known(self, how):
    path, _ = self.save()
    mesh, like = make(2)
    files = sorted(p for p in path.rglob('*') if p.is_file())
    self.assertGreater(len(files), 5)
    for file in files:
      whole = file.read_bytes()
      if how == 'flip' and whole:
        middle = len(whole) // 2
        flipped = bytes([whole[middle] ^ 1])
        file.write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
      elif how == 'cut':
        file.write_bytes(whole[:-1])
      elif how == 'empty':
        file.write_bytes(b'')
      else:
        file.unlink()
      if not (file.exists() and file.read_bytes() == whole):
        self.refused('is damaged .*; move it away to go on', mesh, like)
      file.write_bytes(whole)
    checkpoints.restore(self.directory, mesh, like, DESCRIPTION)

  def test_refuses_another_run(self):
    self.save()
    other = {**DESCRIPTION, 'algorithm': 'k_avg'}
    self.refused("algorithm='pr_sgd', this run has 'k_avg'", *make(2), other)

  def test_refuses_another_number_of_replicas(self):
    self.save()
    self.refused('has 8 replicas, this run has 4', *make(2, num_replicas=4))

  def test_refuses_another_shape(self):
    self.save()
    self.refused(r'float32\[8, 3, 4\].*float32\[8, 3, 5\]', *make(2, width=5))

  def test_refuses_another_algorithm(self):
    self.save()
    adam = pr.pr_sgd(optax.adam(0.1), period=4)
    self.refused('another algorithm or model', *make(2, algorithm=adam))

  def test_refuses_an_empty_directory(self):
    self.directory.mkdir()
    self.refused('no whole checkpoint', *make(2))

  def test_names_with_dots_that_collide_are_refused(self):
    mesh = pr.ReplicaMesh(2, 1)
    params = {'a.b': np.zeros(2), 'a': {'b': np.zeros(2)}}
    state = pr.create_train_state(mesh, pr_sgd(), params)
    with self.assertRaisesRegex(ValueError, 'the same name'):
      checkpoints.save(self.directory, mesh, state, {})


if __name__ == '__main__':
  absltest.main()
