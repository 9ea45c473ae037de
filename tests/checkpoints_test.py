"""Tests of `prsgd_jax.engine.checkpoints`."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import prsgd_jax as pr
from prsgd_jax.engine import (
  checkpoint_arrays,
  checkpoint_files,
  checkpoint_leaves,
  checkpoints,
)
from prsgd_jax.engine.checkpoints import CheckpointError

DESCRIPTION = {'algorithm': 'pr_sgd', 'sizes': (1, 2)}


def pr_sgd():
  return pr.pr_sgd(optax.sgd(0.1, momentum=0.9), period=4)


def make(num_devices, *, num_replicas=8, algorithm=None, width=4):
  mesh = pr.engine.ReplicaMesh(num_replicas, num_devices)
  rng = np.random.default_rng(0)
  params = {
    'w': rng.normal(size=(num_replicas, 3, width)).astype(np.float32),
    'half': {'b': jnp.asarray(rng.normal(size=(num_replicas,)), jnp.bfloat16)},
  }
  model_state = {'count': np.arange(num_replicas)}
  return mesh, pr.engine.create_train_state(
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
    saved = on_host(pr.engine.ReplicaMesh(8, saved_on), state)
    mesh, like = make(restored_on)
    like = like.replace(params=jax.tree.map(jnp.zeros_like, like.params))
    restored = checkpoints.restore(self.directory, mesh, like, DESCRIPTION)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      restored, mesh.map(lambda state: state)(like)
    )
    chex.assert_trees_all_equal(on_host(mesh, restored), saved, strict=True)

  def test_leaves_of_size_0_come_back(self):
    # Because no file has them. The state of galore always has some.
    algorithm = pr.k_avg(optax.contrib.galore(0.1), period=4)
    mesh, state = make(2, algorithm=algorithm, width=0)
    checkpoints.save(self.directory, mesh, state, DESCRIPTION)
    other, like = make(4, algorithm=algorithm, width=0)
    restored = checkpoints.restore(self.directory, other, like, DESCRIPTION)
    self.assertEqual(restored.params['w'].shape, (4, 2, 3, 0))
    chex.assert_trees_all_equal(on_host(other, restored), on_host(mesh, state))

  def test_arrays_that_orbax_wrote_are_read(self):
    # As earlier versions did.
    path, state = self.save()
    record = checkpoint_files.read_record(path)
    leaves = checkpoints.read_leaves(path, record)
    shutil.rmtree(path / 'state')
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(path / 'state', leaves)
    del record['sha256'], record['files']
    files = checkpoint_files.digests(path)
    checkpoint_files.write_record(path, record, files)
    mesh, like = make(4)
    restored = checkpoints.restore(self.directory, mesh, like, DESCRIPTION)
    saved = on_host(pr.engine.ReplicaMesh(8, 2), state)
    chex.assert_trees_all_equal(on_host(mesh, restored), saved, strict=True)

  @parameterized.parameters(
    (1, range(8)), (1, range(2, 5)), (2, range(4)), (4, range(1, 7)),
    (8, range(7, 8)), (4, None),
  )  # fmt: skip
  def test_rows_of_parts(self, num_parts, rows):
    """Of a checkpoint of several processes, which this process writes."""
    mesh, state = make(2)
    leaves = checkpoint_leaves.to_host(mesh, state)
    leaves['empty'] = np.zeros((8, 0, 2), np.float16)
    size = 8 // num_parts
    parts = [
      checkpoint_arrays.Part(f'state-{p}', p * size, (p + 1) * size)
      for p in range(num_parts)
    ]
    shared = checkpoint_leaves.is_shared
    self.directory.mkdir()
    for part in parts:
      own = slice(part.start, part.stop)
      checkpoint_arrays.write(
        self.directory / part.name,
        {n: x if shared(n) else x[own] for n, x in leaves.items()},
      )
    record = {
      'num_replicas': 8,
      'leaves': {n: f'{x.dtype}{list(x.shape)}' for n, x in leaves.items()},
      'parts': json.loads(json.dumps(parts)),
    }
    found = checkpoint_arrays.read(self.directory, record, rows=rows)
    wanted = slice(rows.start, rows.stop) if rows else slice(None)
    chex.assert_trees_all_equal(
      found,
      {n: x if shared(n) else x[wanted] for n, x in leaves.items()},
      strict=True,
    )

  def test_restored_state_may_be_donated(self):
    self.save()
    mesh, like = make(2)
    state = checkpoints.restore(self.directory, mesh, like, DESCRIPTION)
    steps = pr.engine.make_train_steps(
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
    self.assertGreaterEqual(len(files), 3)
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
        self.refused('is damaged .*; move it away to start', mesh, like)
      file.write_bytes(whole)
    checkpoints.restore(self.directory, mesh, like, DESCRIPTION)

  @parameterized.parameters('99999', '\N{SUPERSCRIPT TWO}', '007', '-1')
  def test_stray_file_is_no_checkpoint(self, name):
    self.save()
    (self.directory / name).touch()
    (self.directory / '8').symlink_to('nowhere')
    self.assertEqual(checkpoints.steps(self.directory), [0])
    self.assertEqual(checkpoints.latest_step(self.directory), 0)

  def test_stray_directory_is_named(self):
    self.save()
    (self.directory / '99999').mkdir()
    self.refused(
      r'99999 is damaged \(record.json cannot be read\); move it away to '
      r'resume from \S+/saved/0$',
      *make(2),
    )

  @parameterized.parameters('pipe', 'directory', 'huge', 'nested', 'list')
  def test_another_thing_in_place_of_the_record(self, what):
    path, _ = self.save()
    record = path / 'record.json'
    record.unlink()
    if what == 'pipe':
      os.mkfifo(record)
    elif what == 'directory':
      record.mkdir()
    elif what == 'huge':
      record.touch()
      os.truncate(record, 2**40)
    else:
      record.write_text('[' * 10**5 if what == 'nested' else '[]')
    with self.assertRaisesRegex(CheckpointError, 'record.json cannot be read'):
      checkpoints.restore(self.directory, *make(2), DESCRIPTION)

  def test_sealed_record_of_another_form_is_damage(self):
    path, _ = self.save()
    record = json.loads((path / 'record.json').read_text())
    for name in ('description', 'files', 'leaves'):
      whole = {**record, name: []}
      del whole['sha256']
      seal = checkpoint_files._seal(whole)
      (path / 'record.json').write_text(json.dumps({**whole, 'sha256': seal}))
      self.refused('record.json has changed', *make(2))

  def test_renamed_checkpoint_is_not_of_its_new_step(self):
    path, _ = self.save()
    path.rename(self.directory / '8')
    self.refused('8 holds step 0: it was renamed', *make(2))

  def test_added_file_is_named_as_such(self):
    path, _ = self.save()
    (path / 'state' / 'notes.txt').touch()
    self.refused(r'damaged \(state/notes.txt was added\)', *make(2))

  @parameterized.parameters('8.unrecorded', 'best')
  def test_damage_of_a_copy_proposes_no_older_one(self, name):
    path, _ = self.save()
    copy = path.rename(path.with_name(name))
    checkpoint_files.read_record(copy)
    (copy / 'notes.txt').touch()
    with self.assertRaisesRegex(
      CheckpointError, f'{name} is damaged .*txt was added.; use another one$'
    ):
      checkpoint_files.read_record(copy)

  def test_files_that_were_swapped_have_changed(self):
    path, _ = self.save()
    files = [p for p in (path / 'state').rglob('*') if p.is_file()]
    one, other = sorted(files, key=lambda p: p.read_bytes())[:: len(files) - 1]
    swapped = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(swapped)
    self.refused('has changed', *make(2))

  def test_file_in_place_of_the_directory_is_no_empty_one(self):
    self.directory.touch()
    for call in (checkpoints.steps, checkpoints.latest_step):
      with self.assertRaisesRegex(CheckpointError, 'saved is no directory of'):
        call(self.directory)

  def test_unreadable_file_is_one_line(self):
    path, _ = self.save()
    error = PermissionError(13, 'Permission denied', str(path / 'state' / 'x'))
    with mock.patch.object(checkpoint_files, '_digest', side_effect=error):
      self.refused('x cannot be read: Permission denied', *make(2))

  @parameterized.parameters('file', 'link', 'directory')
  def test_what_is_in_the_way_does_not_hinder_saving(self, kind):
    self.directory.mkdir()
    partial = self.directory / '.0.partial'
    if kind == 'file':
      partial.touch()
    elif kind == 'link':
      partial.symlink_to(self.enterContext(tempfile.TemporaryDirectory()))
    else:
      (partial / 'state').mkdir(parents=True)
    self.save()
    checkpoints.restore(self.directory, *make(2), DESCRIPTION)

  def test_notes_come_back_and_are_sealed(self):
    mesh, state = make(2)
    notes = {'sums': {'loss': 0.1 + 0.2}, 'steps': [1, 2]}
    checkpoints.save(self.directory, mesh, state, {}, notes=notes)
    self.assertEqual(checkpoints.read_notes(self.directory, 0), notes)
    record = self.directory / '0' / 'record.json'
    record.write_text(record.read_text().replace('0.3', '0.4'))
    with self.assertRaisesRegex(CheckpointError, 'record.json has changed'):
      checkpoints.read_notes(self.directory, 0)

  @parameterized.parameters(False, True)
  def test_saving_may_remove_older_ones(self, in_background):
    mesh, state = make(2)
    for step in range(3):
      state = state.replace(step=jnp.full((2,), step, jnp.int32))
      if in_background:
        saved = checkpoints.save_in_background(
          self.directory, mesh, state, DESCRIPTION, keep=2
        )
        self.assertEqual(saved.result(), self.directory / str(step))
      else:
        checkpoints.save(self.directory, mesh, state, DESCRIPTION, keep=2)
    self.assertEqual(checkpoints.steps(self.directory), [1, 2])

  @parameterized.parameters(1, 8)
  def test_background_save_is_of_the_state_that_was_passed(self, num_devices):
    mesh, state = make(num_devices, width=1000)
    before = on_host(mesh, state)
    steps = pr.engine.make_train_steps(
      mesh, pr_sgd(), lambda p, s, b, k: (jnp.square(p['w']).sum() * b, (s, {}))
    )
    entered, go_on = threading.Event(), threading.Event()
    write = checkpoint_arrays.write

    def slow(*args):
      entered.set()
      go_on.wait(60)
      write(*args)

    with mock.patch.object(checkpoint_arrays, 'write', slow):
      saved = checkpoints.save_in_background(
        self.directory, mesh, state, DESCRIPTION
      )
      entered.wait(60)
      batches = np.ones((num_devices, 5, 8 // num_devices), np.float32)
      state, _ = steps(state, batches)  # which donates the state
      jax.block_until_ready(state)
      self.assertFalse(saved.done())
      self.assertEqual(checkpoints.steps(self.directory), [])
      go_on.set()
      saved.result()
    restored = checkpoints.restore(self.directory, *make(2, width=1000),
                                   DESCRIPTION)  # fmt: skip
    mesh = pr.engine.ReplicaMesh(8, 2)
    chex.assert_trees_all_equal(on_host(mesh, restored), before, strict=True)

  def test_background_save_waits_for_the_one_before(self):
    mesh, state = make(2)
    write = checkpoint_arrays.write

    def slow(*args):
      time.sleep(0.1)
      write(*args)

    with mock.patch.object(checkpoint_arrays, 'write', slow):
      saved = []
      for step in range(3):
        self.assertTrue(all(one.done() for one in saved[:-1]))
        state = state.replace(step=jnp.full((2,), step, jnp.int32))
        saved.append(
          checkpoints.save_in_background(
            self.directory, mesh, state, DESCRIPTION
          )
        )
      saved[-1].result()
    self.assertEqual(checkpoints.steps(self.directory), [0, 1, 2])

  def test_without_notes_there_are_none(self):
    self.save()
    self.assertIsNone(checkpoints.read_notes(self.directory, 0))

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
    mesh = pr.engine.ReplicaMesh(2, 1)
    params = {'a.b': np.zeros(2), 'a': {'b': np.zeros(2)}}
    state = pr.engine.create_train_state(mesh, pr_sgd(), params)
    with self.assertRaisesRegex(ValueError, 'the same name'):
      checkpoints.save(self.directory, mesh, state, {})


class PruneTest(parameterized.TestCase):
  """Of five checkpoints, which are copies of one under other names."""

  def setUp(self):
    super().setUp()
    root = self.enterContext(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(root)
    mesh, self.state = make(2)
    path = checkpoints.save(self.directory, mesh, self.state, DESCRIPTION)
    for step in (5, 10, 15, 20):
      shutil.copytree(path, path.with_name(str(step)))

  @parameterized.parameters(
    (1, [20]), (3, [10, 15, 20]), (5, [0, 5, 10, 15, 20]),
    (9, [0, 5, 10, 15, 20]),
  )  # fmt: skip
  def test_newest_stay(self, keep, left):
    gone = checkpoints.prune(self.directory, keep)
    self.assertEqual(checkpoints.steps(self.directory), left)
    self.assertEqual(sorted(gone + left), [0, 5, 10, 15, 20])
    names = sorted(int(p.name) for p in self.directory.iterdir())
    self.assertEqual(names, left)
    self.assert_whole(left)

  @parameterized.parameters(
    ({'newest': 1, 'every': 10}, [0, 10, 20]),
    ({'newest': 2, 'every': 7}, [0, 15, 20]),
    ({'newest': None, 'every': 7}, [0, 5, 10, 15, 20]),
    ({'newest': 1, 'lowest': ('loss',)}, [5, 20]),
    ({'newest': 1, 'highest': ('loss', 'other')}, [15, 20]),
    ({'newest': 1, 'lowest': ('nan', 'none', 'text')}, [20]),
    ({'newest': 1, 'every': 10, 'lowest': ('loss',)}, [0, 5, 10, 20]),
  )  # fmt: skip
  def test_rules_add_to_the_newest(self, rules, left):
    losses = {0: 0.5, 5: 0.1, 10: 0.3, 15: 0.6, 20: 0.2}
    for step, loss in losses.items():
      path = self.directory / str(step)
      record = checkpoint_files.read_record(path)
      files = record.pop('files')
      del record['sha256']
      measures = {'loss': loss, 'nan': float('nan'), 'text': 'low'}
      record['notes'] = {'measures': measures} if step else None
      checkpoint_files.write_record(path, record, files)
    checkpoints.prune(self.directory, checkpoints.Retention(**rules))
    self.assertEqual(checkpoints.steps(self.directory), left)

  @parameterized.parameters({'newest': 0}, {'every': 0}, {'every': 1.5})
  def test_rules_of_no_number_are_refused_before_saving(self, **rules):
    (name,) = rules
    mesh = pr.engine.ReplicaMesh(8, 2)
    keep = checkpoints.Retention(**rules)
    with self.assertRaisesRegex(ValueError, f'{name} must be an integer >= 1'):
      checkpoints.save(self.directory / 'new', mesh, self.state, {}, keep=keep)
    self.assertFalse((self.directory / 'new').exists())

  def assert_whole(self, steps):
    for step in steps:
      checkpoint_files.read_record(self.directory / str(step))

  def test_nothing_goes_while_the_newest_is_damaged(self):
    (self.directory / '20' / 'record.json').unlink()
    with self.assertRaisesRegex(
      CheckpointError, '20 is damaged .* resume from .*15$'
    ):
      checkpoints.prune(self.directory, 1)
    self.assertEqual(checkpoints.steps(self.directory), [0, 5, 10, 15, 20])

  def test_damaged_one_before_is_not_proposed(self):
    for step in (15, 20):
      (self.directory / str(step) / 'record.json').unlink()
    with self.assertRaisesRegex(CheckpointError, 'resume from .*/10$'):
      checkpoints.restore(self.directory, *make(2), DESCRIPTION)

  @parameterized.parameters(range(12))
  def test_killed_at_any_call_leaves_whole_ones(self, calls):
    class Killed(BaseException):
      pass

    left = [calls]

    def counted(call):
      def wrapper(*args, **kwargs):
        if left[0] == 0:
          raise Killed
        left[0] -= 1
        return call(*args, **kwargs)

      return wrapper

    kill = ((pathlib.Path, 'rename'), (os, 'unlink'), (os, 'rmdir'))
    with contextlib.ExitStack() as stack:
      for module, name in kill:
        wrapped = counted(getattr(module, name))
        stack.enter_context(mock.patch.object(module, name, wrapped))
      with self.assertRaises(Killed):
        checkpoints.prune(self.directory, 2)
    self.assertContainsSubset([15, 20], checkpoints.steps(self.directory))
    self.assert_whole(checkpoints.steps(self.directory))
    checkpoints.prune(self.directory, 2)
    names = {p.name for p in self.directory.iterdir()}
    self.assertEqual(names, {'15', '20'})

  def test_left_overs_go_and_what_is_not_ours_stays(self):
    (self.directory / '.25.partial').mkdir()
    (self.directory / '.5.deleted').symlink_to(self.directory / '15')
    for name in ('notes.txt', '.hidden', '7.unrecorded'):
      (self.directory / name).touch()
    checkpoints.prune(self.directory, 1)
    names = {p.name for p in self.directory.iterdir()}
    self.assertEqual(names, {'20', 'notes.txt', '.hidden', '7.unrecorded'})

  def test_linked_checkpoint_loses_the_link_only(self):
    elsewhere = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    shutil.move(self.directory / '5', elsewhere / '5')
    (self.directory / '5').symlink_to(elsewhere / '5')
    checkpoints.prune(self.directory, 2)
    self.assertEqual(checkpoints.steps(self.directory), [15, 20])
    self.assertTrue((elsewhere / '5' / 'record.json').exists())

  @parameterized.parameters(0, -1, 1.5, True)
  def test_keeps_one_at_least(self, keep):
    with self.assertRaisesRegex(ValueError, 'keep must be an integer >= 1'):
      checkpoints.prune(self.directory, keep)

  def test_set_aside_is_ignored_and_whole(self):
    for _ in range(2):
      checkpoint_files.set_aside(self.directory, 20)
      shutil.copytree(self.directory / '15', self.directory / '20')
    names = sorted(p.name for p in self.directory.glob('*.unrecorded*'))
    self.assertEqual(names, ['20.unrecorded', '20.unrecorded-2'])
    checkpoint_files.read_record(self.directory / '20.unrecorded')


if __name__ == '__main__':
  absltest.main()
