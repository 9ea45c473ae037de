"""Compare the speed and memory of the engine with an older checkout.

  git worktree add ../before COMMIT
  python experiments/tools/benchmark_versions.py --before=../before

Both engines take turns in one process, on identical batches. The older package
is copied under another name. `speed` is the ratio of the median steps per
second, new to old; above 1, the new engine is faster. `memory` is the ratio of
the bytes that the compiled program requires on one device. --control compares
the older engine with itself, which shows the noise of the ratios.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Callable, Mapping
import importlib
import json
import statistics
import tempfile
import time
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import optax

from experiments.running.flags import cli
from experiments.running.records import records
from experiments.tools import benchmark_cases, tables
from experiments.tools.benchmark_cases import BATCH_SIZE, Case
from experiments.tools.tables import Column

FLAGS = flags.FLAGS

flags.DEFINE_string(
  'before', None, 'Root directory of the older checkout.', required=True
)
flags.DEFINE_list(
  'algorithms',
  ['pr_sgd', 'k_avg', 'slowmo', 'scaffold', 'choco_sgd', 'sgp'],
  'Algorithms to measure: pr_sgd, k_avg, slowmo, scaffold, choco_sgd, sgp.',
)
flags.DEFINE_list(
  'devices',
  ['2', '8'],
  'Numbers of devices to measure with, one replica on each device.',
)
flags.DEFINE_integer('repeats', 51, 'Number of measurements of each engine.')
flags.DEFINE_bool('control', False, 'Compare the older engine with itself.')
flags.adopt_module_key_flags(cli)

# Steps of a dispatch, and dispatches of a measurement.
STEPS, DISPATCHES = 64, 8
RATE = 0.01
OPTIMIZER = optax.sgd(RATE, momentum=0.9)
# Algorithms whose signature is equal in all versions.
ALGORITHMS: Mapping[str, Callable[[ModuleType], Any]] = {
  'pr_sgd': lambda pr: pr.pr_sgd(OPTIMIZER, period=4),
  'k_avg': lambda pr: pr.k_avg(OPTIMIZER, period=4),
  'slowmo': lambda pr: pr.slowmo(
    OPTIMIZER, period=4, learning_rate=RATE, slow_momentum=0.5
  ),
  'scaffold': lambda pr: pr.scaffold(
    optax.sgd(RATE), period=4, learning_rate=RATE
  ),
  'choco_sgd': lambda pr: pr.choco_sgd(
    OPTIMIZER,
    mixing=_room(pr, 'graphs').ring(),
    compressor=_room(pr, 'codecs').top_k(0.1),
    consensus_step_size=0.3,
  ),
  'sgp': lambda pr: pr.sgp(OPTIMIZER),
}


def _room(pr: ModuleType, name: str) -> ModuleType:
  """Return the namespace of some names, which are flat in older versions."""
  return vars(pr).get(name, pr)


def load(root: pathlib.Path, name: str) -> ModuleType:
  """Import the package of a checkout under another name."""
  copy = pathlib.Path(tempfile.mkdtemp()) / name
  for path in (root / 'prsgd_jax').rglob('*'):
    there = copy / path.relative_to(root / 'prsgd_jax')
    if path.suffix == '.py':
      there.parent.mkdir(parents=True, exist_ok=True)
      there.write_text(path.read_text().replace('prsgd_jax', name))
    elif path.suffix == '.gz':
      there.parent.mkdir(parents=True, exist_ok=True)
      there.write_bytes(path.read_bytes())
  sys.path.insert(0, str(copy.parent))
  return importlib.import_module(name)


class Loop(NamedTuple):
  """A compiled loop; each call of `run` is one dispatch and keeps the state."""

  run: Callable[[], Any]
  bytes_per_device: int


def make_loop(pr: ModuleType, name: str, case: Case) -> Loop:
  """Return the compiled loop of one version, one replica on each device."""
  if 'trainer' not in vars(pr):
    return _flat_loop(pr, name, case)
  models = importlib.import_module(f'{pr.__name__}.models.classification')
  trainer = pr.trainer(
    ALGORITHMS[name](pr),
    models.classifier(case.model).loss_fn,
    num_replicas=case.num_replicas,
    num_devices=case.num_replicas,
  )
  state = trainer.init(*benchmark_cases.initial(case))
  data = pr.shared(case.data, batch_size=BATCH_SIZE, transform=_to_float)
  return _compiled(trainer.run, trainer.lower, state, data)


def _flat_loop(pr: ModuleType, name: str, case: Case) -> Loop:
  """Return the loop of a version without a trainer and with flat names."""
  models = importlib.import_module(f'{pr.__name__}.classification')
  mesh = pr.ReplicaMesh(case.num_replicas, case.num_replicas)
  sampler = pr.shared(
    len(case.data['label']), mesh.num_replicas, BATCH_SIZE, seed=0
  )
  algorithm = ALGORITHMS[name](pr)
  state = pr.create_train_state(mesh, algorithm, *benchmark_cases.initial(case))
  train_steps = pr.make_resident_train_steps(
    mesh,
    algorithm,
    models.classifier(case.model).loss_fn,
    pr.make_batch_fn(mesh, sampler, _to_float),
  )
  data = mesh.replicate(case.data)
  return _compiled(train_steps, train_steps.lower, state, data)


def _compiled(train_steps: Any, lower: Any, state: Any, data: Any) -> Loop:
  """Return the loop of a function after two warm-up calls, and its memory."""
  found: Any = lower(state, data, STEPS).compile().memory_analysis()
  memory = (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )

  def run() -> Any:
    nonlocal state
    state, metrics = train_steps(state, data, STEPS)
    return metrics

  for _ in range(2):
    jax.block_until_ready(run())
  return Loop(run, memory)


def _to_float(key: jax.Array, batch: Any) -> Any:
  del key
  return {**batch, 'image': batch['image'] / jnp.float32(16)}


def measure(
  before: ModuleType, after: ModuleType, name: str, case: Case
) -> dict[str, float]:
  """Run both versions in turn and return the ratios new to old.

  Returns:
    `speed` and `memory`, ratios; `steps_per_second` of the new version.
  """
  loops = [make_loop(pr, name, case) for pr in (before, after)]
  rates: tuple[list[float], list[float]] = ([], [])
  for i in range(FLAGS.repeats):
    for which in (0, 1) if i % 2 else (1, 0):
      begun = time.perf_counter()
      for _ in range(DISPATCHES):
        metrics = loops[which].run()
      jax.block_until_ready(metrics)
      rates[which].append(DISPATCHES * STEPS / (time.perf_counter() - begun))
  medians = [statistics.median(r) for r in rates]
  return {
    'speed': medians[1] / medians[0],
    'memory': loops[1].bytes_per_device / loops[0].bytes_per_device,
    'steps_per_second': medians[1],
  }


def main() -> None:
  cli.make_fake_devices(8)
  before = load(pathlib.Path(FLAGS.before), 'prsgd_before')
  if FLAGS.control:
    after = load(pathlib.Path(FLAGS.before), 'prsgd_again')
  else:
    after = importlib.import_module('prsgd_jax')
  found: dict[str, dict[str, float]] = {}
  rows = []
  for devices in FLAGS.devices:
    case = benchmark_cases.make_case('mlp2', FLAGS.data_dir)
    case = case._replace(num_replicas=int(devices))
    for name in FLAGS.algorithms:
      print(f'{name}, {devices} devices ...', flush=True)
      measured = measure(before, after, name, case)
      found[f'{name}_{devices}'] = measured
      rows.append({'algorithm': name, 'devices': devices, **measured})
  print(f'\n{tables.aligned(rows, COLUMNS)}')
  print(f'\n{json.dumps({"machine": records.machine(), "cases": found})}')


COLUMNS = (
  Column('algorithm'),
  Column('devices', is_number=True),
  Column('speed', show='{:.3f}'.format, is_number=True),
  Column('memory', show='{:.3f}'.format, is_number=True),
  Column('steps_per_second', 'steps/s', '{:.0f}'.format, is_number=True),
)


if __name__ == '__main__':
  cli.run(main)
