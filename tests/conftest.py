"""Tests run on 8 fake CPU devices, asked for before JAX makes its own.

Compiled programs are shared by the tests of a session, which compile many of
them again and again: every call of a binary has jitted functions of its own.
They run for a moment each, and most of the time goes into compiling them: the
compiler's last optimizations are left out.
"""

import os
import tempfile

# Of the environment, so that programs which tests start compile alike.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
_cache = tempfile.TemporaryDirectory()  # removed when the session ends
jax.config.update('jax_compilation_cache_dir', _cache.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
