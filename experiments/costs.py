"""What every algorithm costs for a given model and network, without a run.

  python experiments/costs.py --model=resnet20 --dataset=cifar10

One row for each --run (see compare.py); without any, for the preset of every
algorithm. Rounds and bytes are what the chains that run would send; the time is
that of a model of the machines (see the flags of the network): the seconds
until the last replica has done its steps. The speeds of the replicas are those
of --replica_speeds, not of the presets; AD-PSGD has its own.
"""

from experiments import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp

from experiments import (
  cli,
  compare,
  config,
  experiment,
  network,
  records,
  tasks,
)
from experiments.parts import replica_shapes
import prsgd_jax as pr

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(compare)

PRESETS = pathlib.Path(__file__).parent / 'presets'


class Shape(NamedTuple):
  """Of a dataset: one example as models read it, the training split, labels."""

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


def main() -> None:
  with cli.one_line_errors(ValueError):
    run_configs = compare.parse_runs(FLAGS.run or preset_runs())
    machines = network.from_flags(FLAGS, run_configs[0].num_replicas)
    accounts = [account(run_config, machines) for run_config in run_configs]
  print(format_table([c.label() for c in run_configs], accounts), end='')
  cli.check_output()


def preset_runs() -> list[str]:
  """The algorithm of every preset that has one, with its options, once each."""
  runs = []
  for path in sorted(PRESETS.glob('*.flags')):
    given = {}
    for line in path.read_text().splitlines():
      name, _, value = line.partition('=')
      given[name.removeprefix('--')] = value
    if 'algorithm' in given:
      options = [
        f'{n}={given[n].replace(",", "+")}'
        for n in config.OPTIONS
        if n in given
      ]
      runs.append(','.join([given['algorithm'], *options]))
  return list(dict.fromkeys(runs))


def account(run_config: config.RunConfig, machines: pr.Network) -> pr.Account:
  """The account of a run that is not run.

  Raises:
    ValueError: if the shape of the dataset is not known here.
  """
  if run_config.dataset not in DATASETS:
    raise ValueError(
      f'--dataset must be one of {", ".join(DATASETS)}, got '
      f'{run_config.dataset}'
    )
  batch, num_examples, num_classes = DATASETS[run_config.dataset]
  plan = experiment.build_plan(run_config, num_examples)
  params, model_state = jax.eval_shape(
    tasks.build(run_config, num_classes, batch).init,
    jax.eval_shape(lambda: jax.random.key(0)),
    batch,
  )
  n = run_config.num_replicas
  machines = experiment.with_own_speeds(run_config, machines)
  shapes = replica_shapes(plan.algorithm, n, params, model_state)
  return pr.account(plan.algorithm, shapes, n, plan.num_steps, machines)


def format_table(labels: Sequence[str], accounts: Sequence[pr.Account]) -> str:
  """Markdown: one row for each algorithm."""
  head = (
    '| algorithm | rounds | sent per replica | between groups | inside '
    '| modelled time, s | each round that the data decide |\n'
    '|---|---|---|---|---|---|---|\n'
  )
  return head + ''.join(map(_row, labels, accounts))


def _row(label: str, spent: pr.Account) -> str:
  inside = spent.bytes_by_tier.get('group')
  within = 0.0 if inside is None else float(inside[-1])
  decided = ', '.join(
    f'{records.format_bytes(size)}, {lasts:.3g} s'
    for _, size, lasts in spent.decided
  )
  cells = (
    label,
    str(spent.rounds[-1]),
    records.format_bytes(spent.bytes_sent[-1]),
    records.format_bytes(spent.bytes_sent[-1] - within),
    records.format_bytes(within),
    f'{spent.seconds[-1]:.2f}',
    decided,
  )
  return f'| {" | ".join(cells)} |\n'


if __name__ == '__main__':
  cli.run(main)
