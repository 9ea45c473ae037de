r"""Print the cost of algorithms on a network, or plan which one to use.

  python experiments/costs.py --model=resnet20 --dataset=cifar10

The table has one row for each --run (see compare.py). Without --run, it has one
row for the preset of each algorithm. A preset with one number per replica is
scaled to --num_replicas. A preset that does not fit is left out with a note.

Rounds and bytes are those a training run would send. The modeled time is the
number of seconds until the last replica finishes, given --step_time and the
links. Speeds come from --replica_speeds, not from presets; AD-PSGD has its own.

With --plan, it trains short pilots, and prints which run reaches a loss first:

  python experiments/costs.py --plan --target_loss=0.1 --num_replicas=4 \
    --bandwidth=12.5e6 --latency=1e-3 --run=ssgd --run=pr_sgd \
    --grid=period=4,16,64 --num_steps=200 --workdir=runs/plan
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp

from experiments import compare
from experiments.planning import plan_flags, plans, reporting
from experiments.running.execution import experiment
from experiments.running.flags import (
  cli,
  config,
  data,
  dotted,
  grids,
  network,
  process_flags,
  run_specs,
  speed_flags,
  tasks,
)
from experiments.running.process import locks, messages
from experiments.running.records import units, writing
from experiments.tools import tables
from experiments.tools.tables import Column
import prsgd_jax as pr
from prsgd_jax.engine.train_state import initial_shapes

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(compare)
flags.adopt_module_key_flags(grids)
flags.adopt_module_key_flags(plan_flags)
flags.DEFINE_enum(
  'sort',
  'given',
  [
    'given', 'algorithm', 'rounds', 'bytes_sent', 'bytes_between_groups',
    'bytes_inside_groups', 'modeled_seconds',
  ],
  'Column to sort the rows by, in ascending order; given keeps the order of '
  '--run.',
)  # fmt: skip
flags.DEFINE_enum(
  'format',
  'table',
  ['table', 'markdown', 'csv', 'json'],
  'Output format: a table with units for a terminal (table) or a Markdown page '
  '(markdown), or exact numbers (csv, json).',
)

PRESETS = pathlib.Path(__file__).parent / 'presets'


# Name -> what one run would spend.
Row = dict[str, Any]


class Shape(NamedTuple):
  """Shapes of a dataset.

  Attributes:
    batch: a batch of one example, as models read it.
    num_examples: number of training examples.
    num_classes: number of labels or characters.
  """

  batch: dict[str, jax.ShapeDtypeStruct]
  num_examples: int
  num_classes: int


def _images(*shape: int, num_examples: int) -> Shape:
  batch = {'image': jax.ShapeDtypeStruct((1, *shape), jnp.float32)}
  return Shape(batch, num_examples, num_classes=10)


DATASETS = {
  'digits': _images(8, 8, 1, num_examples=1437),
  'mnist': _images(28, 28, 1, num_examples=60_000),
  'fashion_mnist': _images(28, 28, 1, num_examples=60_000),
  'cifar10': _images(32, 32, 3, num_examples=50_000),
  'text': Shape({'text': jax.ShapeDtypeStruct((1, 65), jnp.uint8)}, 15_685, 65),
}


class Start(NamedTuple):
  """Shapes of the model, and the number of training examples."""

  params: Any
  model_state: Any
  num_examples: int


def main() -> None:
  if FLAGS.plan:
    _plan()
  else:
    _costs()
  cli.check_output()


def _costs() -> None:
  """Print the cost of each run."""
  with cli.one_line_errors(ValueError):
    plan_flags.check_absent(FLAGS)
    if FLAGS.run:
      made = [(c.label(), c) for c in run_specs.parse_runs(FLAGS.run)]
    else:
      made = _of_presets()
    machines = network.from_flags(FLAGS, made[0][1].num_replicas)
    rows = _rows(made, machines, _start(made[0][1]), skip=not FLAGS.run)
  if FLAGS.sort != 'given':
    rows.sort(key=lambda row: row[FLAGS.sort])
  print(FORMATS[FLAGS.format](rows), end='')


def _plan() -> None:
  """Train the pilots of each run, and print the plan."""
  speed_flags.apply(FLAGS)
  with cli.one_line_errors(ValueError, locks.LockError):
    process_flags.refuse(FLAGS, '--plan trains in one process')
    cli.make_fake_devices(FLAGS.num_devices)
    plan = plans.make(plans.prepare(FLAGS))
  for text in reporting.warnings(plan):
    messages.warn(f'warning: {text}')
  print(reporting.text(plan, FLAGS.format), end='')


def _of_presets() -> list[tuple[str, config.RunConfig]]:
  """Return (name, config) of each preset that fits the other flags."""
  runs = preset_runs(FLAGS.num_replicas)
  made, errors = [], []
  for name, run in runs.items():
    try:
      made.append((name, run_specs.parse_runs([run])[0]))
    except ValueError as error:
      errors.append((name, error))
  _leave_out(errors, bool(made))
  return made


def _rows(
  made: Sequence[tuple[str, config.RunConfig]],
  machines: pr.ledger.Network,
  start: Start,
  *,
  skip: bool,
) -> list[Row]:
  rows, errors = [], []
  for name, run_config in made:
    try:
      rows.append(_row(run_config, machines, start))
    except ValueError as error:
      if not skip:
        raise
      errors.append((name, error))
    except MemoryError:
      raise ValueError(
        f'{run_config.label()} does not fit into memory with '
        f'--num_replicas={run_config.num_replicas}; use fewer'
      ) from None
  _leave_out(errors, bool(rows))
  return rows


def _leave_out(errors: Sequence[tuple[str, ValueError]], others: bool) -> None:
  """Print a note for each error; raise the first if no row remains."""
  if errors and not others:
    raise errors[0][1]
  for name, error in errors:
    messages.warn(f'the preset {name} is left out: {error}')


def preset_runs(num_replicas: int) -> dict[str, str]:
  """Return the algorithm and options of each preset, without duplicates.

  Args:
    num_replicas: N, to which a list with one number per replica is scaled.
      Entry i is entry i N' // N of a preset with N' replicas.

  Returns:
    Name of the preset -> value of --run.
  """
  runs: dict[str, str] = {}
  for path in sorted(PRESETS.glob('*.flags')):
    given = {}
    for line in path.read_text().splitlines():
      name, _, value = line.partition('=')
      given[name.removeprefix('--')] = value
    if 'algorithm' not in given:
      continue
    options = [
      f'{name}={_stretched(name, given, num_replicas)}'
      for name in config.OPTIONS
      if name in given
    ]
    run = ','.join([given['algorithm'], *options])
    if run not in runs.values():
      runs[path.stem] = run
  return runs


def _stretched(name: str, given: dict[str, str], num_replicas: int) -> str:
  values = given[name].split(',')
  of_replicas = len(values) == int(given['num_replicas']) > 1
  if of_replicas and 0 < num_replicas <= config.MOST_REPLICAS:
    size = len(values)
    values = [values[i * size // num_replicas] for i in range(num_replicas)]
  return '+'.join(values)


def _start(run_config: config.RunConfig) -> Start:
  """Return the shapes that all runs of one model and dataset share.

  Raises:
    ValueError: if the shape of the dataset is unknown.
  """
  batch, num_examples, num_classes = _shape(run_config)
  params, model_state = jax.eval_shape(
    tasks.build(run_config, num_classes, batch).init,
    jax.eval_shape(lambda: jax.random.key(0)),
    batch,
  )
  return Start(params, model_state, num_examples)


def _shape(run_config: config.RunConfig) -> Shape:
  if (
    dotted.is_dotted(run_config.dataset)
    or run_config.text_file is not None
    or run_config.sequence_length is not None
  ):
    found = data.load(run_config, FLAGS.data_dir)
    return Shape(
      experiment.batch_shapes(found), found.num_examples, found.num_classes
    )
  if run_config.dataset not in DATASETS:
    raise ValueError(
      f'--dataset must be one of {", ".join(DATASETS)}, got '
      f'{run_config.dataset}'
    )
  return DATASETS[run_config.dataset]


def _row(
  run_config: config.RunConfig, machines: pr.ledger.Network, start: Start
) -> Row:
  """Return what a run would spend.

  Raises:
    ValueError: if the run does not fit the number of replicas.
  """
  n = run_config.num_replicas
  plan = experiment.build_plan(run_config, start.num_examples)
  algorithm, num_steps = plan.algorithm, plan.num_steps
  machines = experiment.with_own_speeds(run_config, machines)
  # Without a trainer, because a run of a million replicas has no devices here.
  shapes = initial_shapes(algorithm, n, start.params, start.model_state)
  meter = pr.ledger.meter(algorithm, shapes, n, num_steps, machines)
  spent = meter.spent(meter.advance(meter.init(), num_steps))
  inside = spent.bytes_by_tier.get('group', 0.0)
  return {
    'algorithm': run_config.label(),
    'rounds': spent.rounds,
    'bytes_sent': spent.bytes_sent,
    'bytes_between_groups': spent.bytes_sent - inside,
    'bytes_inside_groups': inside,
    'modeled_seconds': spent.seconds,
    'decided': [
      {'bytes_sent': size, 'modeled_seconds': lasts}
      for _, size, lasts in meter.decided
    ],
  }


def _decided(rounds: Sequence[Row]) -> str:
  return ', '.join(
    f'{units.size(each["bytes_sent"])}, '
    f'{units.duration(each["modeled_seconds"])}'
    for each in rounds
  )


def _seconds(value: float) -> str:
  return f'{value:.2f}' if value < 1e12 else f'{value:.3g}'


COLUMNS = (
  Column('algorithm'),
  Column('rounds', is_number=True),
  Column('bytes_sent', 'sent per replica', units.size, is_number=True),
  Column('bytes_between_groups', 'between groups', units.size, is_number=True),
  Column('bytes_inside_groups', 'inside', units.size, is_number=True),
  Column('modeled_seconds', 'modeled time, s', _seconds, is_number=True),
  Column('decided', 'each data-dependent round', _decided),
)
FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
  'table': lambda rows: tables.aligned(rows, COLUMNS),
  'markdown': lambda rows: tables.markdown(rows, COLUMNS),
  'csv': tables.csv,
  'json': writing.to_json,
}


if __name__ == '__main__':
  cli.run(main)
