"""The compiled programs that the binaries keep on disk."""

import contextlib
import io
import os
import pathlib
import tempfile
from unittest import mock
import zlib

from absl.testing import absltest
import jax

from experiments.running.process import compilation_cache as cache

CPU = 'processor : {}\nmodel name : A\nflags : fpu {}\ncpu MHz : {}\n'


def program(directory, name, size=100, age=0.0):
  """A program of random bytes, as JAX writes it, last used `age` s ago."""
  path = directory / f'{name}-cache'
  path.write_bytes(zlib.compress(os.urandom(size)))
  if age:
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))
  return path


def names(directory):
  return sorted(path.name for path in directory.glob('*/*-cache'))


class CompilationCacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(temporary) / 'programs'

  def test_kinds_of_machines_have_directories_of_their_own(self):
    def named(text):
      path = pathlib.Path(self.root.parent, 'cpuinfo')
      path.write_text(text)
      return cache.machine(str(path))

    one = named(CPU.format(0, 'avx2', 2000))
    self.assertEqual(one, named(CPU.format(0, 'avx2', 3000)))  # another moment
    self.assertNotEqual(one, named(CPU.format(0, 'avx2 avx512f', 2000)))
    with mock.patch.object(cache, '_num_cpus', return_value=3):
      self.assertNotEqual(one, named(CPU.format(0, 'avx2', 2000)))
    self.assertTrue(cache.machine('/none'))  # not Linux

  def test_a_directory_that_others_can_write_to_is_refused(self):
    directory = cache.prepare(self.root)
    self.assertEqual(directory.stat().st_mode & 0o777, 0o700)
    directory.chmod(0o770)
    with self.assertRaisesRegex(OSError, 'another user can write to'):
      cache.prepare(self.root)

  def test_half_a_program_is_removed(self):
    directory = cache.prepare(self.root)
    whole, half = program(directory, 'whole'), program(directory, 'half')
    half.write_bytes(half.read_bytes()[:-1])
    program(directory, 'empty').write_bytes(b'')
    cache.prepare(self.root)
    self.assertEqual(names(self.root), [whole.name])

  def test_programs_are_checked_once(self):
    directory = cache.prepare(self.root)
    half = program(directory, 'half', age=3600)
    half.write_bytes(b'half')
    os.utime(half, (0, 0))  # before the check
    cache.prepare(self.root)
    self.assertEqual(names(self.root), [half.name])

  def test_the_oldest_programs_of_all_machines_are_removed(self):
    other = self.root / 'other'
    other.mkdir(parents=True)
    directory = cache.prepare(self.root)
    for age in (1, 2):
      program(directory, f'of-{age}', age=age)
      program(other, f'of-{age + 2}', age=age + 2)
    with mock.patch.object(cache, 'KEPT_PROGRAMS', 3):
      cache.prepare(self.root)
    self.assertEqual(names(self.root), [f'of-{age}-cache' for age in (1, 2, 3)])
    with mock.patch.object(cache, 'KEPT_BYTES', 250):
      cache.prepare(self.root)
    self.assertEqual(names(self.root), [f'of-{age}-cache' for age in (1, 2)])

  def test_without_a_directory_one_line_says_why(self):
    before = jax.config.jax_compilation_cache_dir
    self.addCleanup(jax.config.update, 'jax_compilation_cache_dir', before)
    jax.config.update('jax_compilation_cache_dir', None)
    self.root.write_text('a file')
    err = io.StringIO()
    with (
      mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.root)),
      contextlib.redirect_stderr(err),
    ):
      cache.use()
    self.assertIsNone(jax.config.jax_compilation_cache_dir)
    self.assertRegex(
      err.getvalue(),
      r'^.*: compiled programs are not kept \(Not a directory\); set '
      r'XDG_CACHE_HOME to a directory that can be written, or pass '
      r'--nocompilation_cache\n$',
    )


if __name__ == '__main__':
  absltest.main()
