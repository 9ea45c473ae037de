"""Call the binaries of `experiments` within the tests' own process."""

import contextlib
import functools
import io
import sys
import tempfile
from typing import NamedTuple
from unittest import mock

from absl import flags
from absl.testing import flagsaver
import grain  # now, because flagsaver would remove the flags it defines

from experiments import train
from experiments.running.execution import experiment
from experiments.running.flags import cli
from prsgd_jax.data.datasets import load_dataset


class Outcome(NamedTuple):
  code: int
  out: str
  err: str


del grain
_assemble = experiment.assemble
_root = tempfile.TemporaryDirectory()  # removed when the session ends


@functools.cache
def digits_dir():
  """A data directory in which the digits are prepared."""
  load_dataset('digits', _root.name)
  return _root.name


def call(binary, *args):
  """Return how `python experiments/<binary>.py ARGS` would end.

  The program gets the devices of the tests: JAX cannot make others.
  """
  out, err = io.StringIO(), io.StringIO()
  name = binary.__name__.rsplit('.')[-1]
  argv = [f'{name}.py', f'--data_dir={digits_dir()}', *args]
  code = 0
  with contextlib.ExitStack() as stack:
    stack.enter_context(flagsaver.flagsaver())
    stack.enter_context(mock.patch.object(sys, 'argv', argv))
    stack.enter_context(mock.patch.object(cli, 'make_fake_devices'))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    for flag in flags.FLAGS:
      flags.FLAGS[flag].present = 0
    try:
      cli.run(binary.main)
    except SystemExit as stop:
      code = stop.code or 0
  return Outcome(code, out.getvalue(), err.getvalue())


def run_jobs(waiting, *, on_end, **settings):
  """`jobs.run_all`, in place of the processes of a sweep."""
  del settings
  for job in waiting:
    _, _, *args = job.command()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    outcome = call(train, *args)
    job.log.write_text(outcome.out + outcome.err)
    on_end(job, outcome.code)


@contextlib.contextmanager
def compiled_once():
  """Share the programs of runs that could resume each other's checkpoints.

  The runs have one trainer, its data and its first point, because compiling is
  most of a small run.
  """
  known = {}

  def assembled(*args, **kwargs):
    parts = _assemble(*args, **kwargs)
    # All that the steps depend on: their number only where it matters.
    mesh = parts.trainer.mesh
    key = repr(parts.description), str(mesh), mesh.map_by, mesh.block
    same = known.setdefault(key, parts)
    return parts._replace(trainer=same.trainer, data=same.data, init=same.init)

  with mock.patch.object(experiment, 'assemble', assembled):
    yield
