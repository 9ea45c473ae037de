"""Tests of `prsgd_jax.engine.cpu_tuning`, in processes it may change."""

import json
import os
import subprocess
import sys

from absl.testing import absltest, parameterized

HEAP, BARRIERS = "glibc's heap is kept", 'XLA keeps barriers'


def tune(before='', flags='', platforms='cpu'):
  """Return what was changed, and XLA_FLAGS, in a new process.

  Args:
    before: a statement before the call.
    flags: XLA_FLAGS at the start.
    platforms: JAX_PLATFORMS at the start.
  """
  code = (
    'import json, os, jax, prsgd_jax as pr\n'
    f'{before}\n'
    'changed = pr.engine.tune_cpu()\n'
    'print(json.dumps([changed, os.environ.get("XLA_FLAGS", "")]))'
  )
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': platforms}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


COMPILED = """
import jax.numpy as jnp
from prsgd_jax.tracing.barriers import materialize
pr.engine.tune_cpu()
program = jax.jit(lambda x: materialize(x + 1) * 2).lower(jnp.ones(9)).compile()
assert 'opt-barrier' in program.as_text()
"""


class TuneCpuTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not sys.platform.startswith('linux'):
      self.skipTest('the C library is glibc on Linux')

  def test_xla_keeps_the_barriers_and_a_second_call_changes_none(self):
    changed, flags = tune(COMPILED, flags='--xla_cpu_enable_fast_math=false')
    self.assertEqual(changed, [HEAP])
    self.assertEqual(
      flags,
      '--xla_cpu_enable_fast_math=false '
      '--xla_disable_hlo_passes=cse_barrier_expander',
    )

  def test_passes_that_the_user_disabled_stay(self):
    flags = '--xla_disable_hlo_passes=algsimp'
    self.assertEqual(tune(flags=flags), [[HEAP], flags])

  def test_nothing_changes_if_jax_may_use_an_accelerator(self):
    self.assertEqual(tune(platforms='cuda,cpu'), [[], ''])


if __name__ == '__main__':
  absltest.main()
