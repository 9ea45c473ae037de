"""Make a plan: measure a step, train the pilots, and judge every run."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple

from absl import flags
import tqdm

from experiments.planning import choices, pilots, plan_flags
from experiments.planning.choices import Candidate, Goal, Trial
from experiments.running.execution import experiment
from experiments.running.execution.parts import Parts
from experiments.running.flags import data, dotted, grids, network
from experiments.running.flags.run_config import RunConfig
from experiments.running.process import locks
from experiments.running.records import slugs
from prsgd_jax.data.datasets import Dataset

# The runs of a plan without --run.
RUNS = (
  'ssgd', 'd_psgd', 'pr_sgd,period=2', 'pr_sgd,period=4', 'pr_sgd,period=8',
  'pr_sgd,period=16', 'pr_sgd,period=32', 'pr_sgd,period=64',
)  # fmt: skip


class Plan(NamedTuple):
  """The answer to a goal, and how it was found.

  Attributes:
    goal: the goal.
    candidates: all runs, the best first.
    seeds: seeds of the pilots.
    step_time: seconds of a step.
    is_measured: whether the step was timed on this machine.
    num_examples: number of training examples of an evaluation.
    every: steps between two evaluations.
    num_steps: largest number of steps of a run.
  """

  goal: Goal
  candidates: tuple[Candidate, ...]
  seeds: tuple[int, ...]
  step_time: float
  is_measured: bool
  num_examples: int
  every: int
  num_steps: int


class Study(NamedTuple):
  """What all pilots share.

  Attributes:
    values: the parsed flags.
    dataset: data of the runs.
    examples: training examples of an evaluation.
    goal: the goal.
    step_time: seconds of a step.
    workdir: directory of the files of the pilots; None for no files.
  """

  values: flags.FlagValues
  dataset: Dataset
  examples: Any
  goal: Goal
  step_time: float
  workdir: pathlib.Path | None


def from_flags(values: flags.FlagValues) -> Plan:
  """Train the pilots of all runs, and return the plan.

  Args:
    values: the parsed flags.

  Raises:
    ValueError: if a flag is invalid, or the directory has other pilots.
    LockError: if another process uses the directory.
  """
  goal, seeds = plan_flags.goal(values), plan_flags.seeds(values)
  points = candidates(values)
  dataset = data.load(points[0].config, values.data_dir)
  every = interval(points[0].config, dataset, values)
  step_time = values.step_time
  is_measured = not values['step_time'].present
  if is_measured:
    step_time = pilots.step_seconds(points[0].config, dataset, every=every)
  workdir = None if values.workdir is None else pathlib.Path(values.workdir)
  examples = pilots.training_examples(dataset)
  study = Study(values, dataset, examples, goal, step_time, workdir)
  with _held(workdir):
    judged, num_steps = _judge(study, points, seeds)
  return Plan(
    goal,
    tuple(choices.order(judged, goal)),
    tuple(seeds),
    step_time,
    is_measured,
    pilots.size(examples),
    every,
    num_steps,
  )


def candidates(values: flags.FlagValues) -> list[grids.Point]:
  """Return the runs to compare, from --run and --grid.

  Args:
    values: the parsed flags.

  Raises:
    ValueError: if a run is invalid, or the seed is on an axis.
  """
  if any('seed' in grids.parse_axis(text).names for text in values.grid):
    raise ValueError('--grid=seed is not an axis of a plan; use --pilot_seeds')
  return grids.points(values.run or RUNS, values.grid, values)


def label(point: grids.Point) -> str:
  """Return the algorithm with its options and its settings on the axes."""
  settings = [
    f'{name}={text}'
    for name, text in point.values.items()
    if not grids.is_option(name)
  ]
  return ' '.join([point.config.label(), *settings])


def interval(
  config: RunConfig, dataset: Dataset, values: flags.FlagValues
) -> int:
  """Return the steps between two evaluations of the pilots.

  Args:
    config: one of the runs.
    dataset: data of the runs.
    values: the parsed flags.
  """
  plan = experiment.build_plan(config, dataset.num_examples)
  return plan_flags.every(values, plan.num_steps)


def _judge(
  study: Study, points: Sequence[grids.Point], seeds: Sequence[int]
) -> tuple[list[Candidate], int]:
  """Return the judged runs, and the largest number of steps."""
  found, most = [], 0
  # All runs of the first seed are checked before the first pilot begins.
  for point in points:
    most = max(most, assemble(study, point, seeds[0]).plan.num_steps)
  bar = tqdm.tqdm(
    total=len(points) * len(seeds),
    unit='pilot',
    disable=not study.values.progress,
  )
  with bar:
    for point in points:
      results = []
      for seed in seeds:
        bar.set_postfix_str(f'{label(point)}, seed {seed}')
        trial = _trial(study, point, seed)
        results.append(choices.judge(trial, study.goal))
        bar.update()
      found.append(Candidate(label(point), tuple(results)))
  return found, most


def _trial(study: Study, point: grids.Point, seed: int) -> Trial:
  """Train the pilot of a run with one seed, or read it."""
  parts = assemble(study, point, seed)
  num_steps = parts.plan.num_steps
  path = None
  if study.workdir is not None:
    path = study.workdir / f'{slugs.shorten(point.slug())}-seed{seed}.json'
  with dotted.named_errors(*point.config.own()):
    pilot = pilots.read_or_train(
      path,
      parts,
      study.examples,
      every=interval(point.config, study.dataset, study.values),
      is_enough=choices.enough(parts.meter, num_steps, study.goal),
    )
  return Trial(parts.meter, num_steps, pilot)


def assemble(study: Study, point: grids.Point, seed: int) -> Parts:
  """Return the parts of a run with one seed.

  Args:
    study: what all pilots share.
    point: the run.
    seed: its seed.

  Raises:
    ValueError: if they do not fit together.
  """
  run_config = dataclasses.replace(point.config, seed=seed)
  machines = network.from_flags(point.flags, run_config.num_replicas)
  return experiment.assemble(
    run_config,
    study.dataset,
    study.values.num_devices,
    machines._replace(step_time=study.step_time),
    map_by=study.values.map_by,
  )


@contextlib.contextmanager
def _held(workdir: pathlib.Path | None) -> Iterator[None]:
  """Lock the directory of the pilots, if there is one."""
  if workdir is None:
    yield
    return
  with locks.hold(workdir):
    yield
