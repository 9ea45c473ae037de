"""Settings of all tests: 8 fake CPU devices, and cheap compilation.

Compiling takes most of the time of the tests. Programs are therefore compiled
in one piece, without the last optimizations and, if a flag can turn them off,
without the emitters of fused loops, which double the time. The tests of a
session and the programs they start share compiled programs, because every call
of a binary makes its own jitted functions.

A file's programs are dropped after it, and earlier where they are many: a
process may have 65 530 memory maps on Linux, a program takes some thirty (in
the usual pieces, or with JAX 0.12, a hundred or two), and a process that has
none left dies of a segmentation fault.
"""

import gc
from importlib import metadata
import itertools
import os
import pathlib
import tempfile

# In the environment, so that programs started by tests compile with them too.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_cpu_parallel_codegen_split_count=1'
  # As `tune_cpu` sets it, so that no test depends on which program ran first.
  + ' --xla_disable_hlo_passes=cse_barrier_expander'
)
if metadata.version('jaxlib').startswith('0.10.'):  # later ones reject it
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'

import jax
import pytest

# A collection walks through all that JAX keeps; with the usual numbers, a fifth
# of the time of the tests of algorithms.
gc.set_threshold(200_000, 20, 100)

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
_cache = tempfile.TemporaryDirectory()  # removed when the session ends
jax.config.update('jax_compilation_cache_dir', _cache.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
# Also of the programs that tests start, which would use the user's otherwise.
os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'


MAPS = pathlib.Path('/proc/self/maps')  # on Linux
MOST_MAPS = 25_000
_tests = itertools.count(1)


@pytest.fixture(autouse=True, scope='module')
def drop_programs():
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def drop_programs_in_time():
  yield
  # Not after each test, because counting takes some milliseconds.
  if next(_tests) % 20 == 0 and MAPS.exists():
    with MAPS.open() as maps:
      if sum(1 for _ in maps) > MOST_MAPS:
        jax.clear_caches()
