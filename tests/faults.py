"""Ends training runs at random moments and compares them with a whole one.

  make faults

Not part of the tests: it takes minutes. A run is killed with SIGKILL, or
signaled as a scheduler does, after a random time, again and again, and resumed
each time from its directory; it must end with the records and, bit for bit,
with the state of the run that nobody touched.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from experiments.running.records import records
from prsgd_jax.engine import checkpoint_files, checkpoints

STEPS = 600
KILLS = 12
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TRAIN = pathlib.Path(records.__file__).parents[2] / 'train.py'


def command(root: pathlib.Path, name: str) -> list[str]:
  return [
    sys.executable, str(TRAIN), '--algorithm=pr_sgd', '--period=4',
    '--num_devices=2', f'--num_steps={STEPS}', '--log_every=2',
    '--eval_every=20', '--checkpoint_every=2', '--noprogress',
    f'--data_dir={root / "data"}', f'--workdir={root / name}',
  ]  # fmt: skip


def kill_and_resume(root: pathlib.Path) -> None:
  """Runs to the end, with kills on the way."""
  rng = random.Random(0)
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  for attempt in range(KILLS):
    begun = (root / 'killed' / 'config.json').exists()
    process = subprocess.Popen(
      resumed(root) if begun else command(root, 'killed'),
      env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    before = steps(root)
    # Mostly while it trains and saves, at times while it still starts.
    deadline = time.monotonic() + 60
    while attempt % 4 and steps(root) == before:
      if process.poll() is not None or time.monotonic() > deadline:
        break
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    number = SIGNALS[attempt % len(SIGNALS)]
    process.send_signal(number)
    code = process.wait(timeout=300)  # a run that hangs is a fault, too
    # In the first milliseconds nobody watches for signals yet.
    if code not in (-number, 130 if number == signal.SIGINT else 75, 0):
      raise AssertionError(f'{number!r} ended in exit code {code}')
    left = list((root / 'killed' / 'checkpoints').glob('.*.partial'))
    print(
      f'{number.name}: at step {steps(root)}, exit code {code}'
      + (', in the middle of a checkpoint' if left else ''),
      flush=True,
    )
  subprocess.run(resumed(root), env=environment, check=True)


def resumed(root: pathlib.Path) -> list[str]:
  start = command(root, 'killed')[:2]
  return [*start, '--resume', f'--workdir={root / "killed"}']


def steps(root: pathlib.Path) -> int:
  directory = root / 'killed' / 'checkpoints'
  found = directory.iterdir() if directory.exists() else ()
  return max((int(p.name) for p in found if p.name.isdigit()), default=0)


def compare(one: pathlib.Path, other: pathlib.Path) -> None:
  """Raises AssertionError where two runs differ."""
  histories = [
    [{**record, 'seconds': 0} for record in records.read_records(workdir)]
    for workdir in (one, other)
  ]
  if histories[0] != histories[1]:
    raise AssertionError('the records differ')
  paths = [w / 'checkpoints' / str(STEPS) for w in (one, other)]
  states = [
    checkpoints.read_leaves(path, checkpoint_files.read_record(path))
    for path in paths
  ]
  for name in states[0]:
    np.testing.assert_array_equal(states[0][name], states[1][name], name)


def main() -> None:
  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    subprocess.run(command(root, 'whole'), check=True)
    kill_and_resume(root)
    compare(root / 'whole', root / 'killed')
  print(f'{KILLS} ends: records and state equal those of an uninterrupted run')


if __name__ == '__main__':
  main()
