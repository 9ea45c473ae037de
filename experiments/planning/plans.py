"""Make a plan: measure a step, train the pilots, and judge every run."""

from collections.abc import Callable
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
from experiments.running.process import locks, process_zero
from experiments.running.records import slugs
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.engine import processes

# The runs of a plan without --run.
RUNS = (
  'ssgd', 'd_psgd', 'pr_sgd,period=2', 'pr_sgd,period=4', 'pr_sgd,period=8',
  'pr_sgd,period=16', 'pr_sgd,period=32', 'pr_sgd,period=64',
)  # fmt: skip
# Flags that are one for all runs of a plan: its data, the time of a step, and
# the goal.
ONE_FOR_ALL = (
  'dataset', 'text_file', 'sequence_length', 'stream', 'stream_processes',
  'augment', 'model', 'model_options', 'batch_size', 'optimizer', 'dtype',
  'step_time', 'num_devices', 'map_by', 'block', 'target_loss',
  'budget_seconds', 'budget_bytes', 'pilot_every',
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
    every: steps between two evaluations, the different ones of the runs.
  """

  goal: Goal
  candidates: tuple[Candidate, ...]
  seeds: tuple[int, ...]
  step_time: float
  is_measured: bool
  num_examples: int
  every: tuple[int, ...]


class Study(NamedTuple):
  """What is compared, and what all pilots share.

  Attributes:
    values: the parsed flags.
    points: the runs.
    seeds: seeds of the pilots.
    dataset: data of the runs.
    examples: training examples of an evaluation.
    goal: the goal.
    step_time: seconds of a step.
    workdir: directory of the files of the pilots; None for no files.
  """

  values: flags.FlagValues
  points: tuple[grids.Point, ...]
  seeds: tuple[int, ...]
  dataset: Dataset
  examples: Any
  goal: Goal
  step_time: float
  workdir: pathlib.Path | None


def prepare(values: flags.FlagValues) -> Study:
  """Load the data, and measure the time of a step unless a flag gives it.

  Args:
    values: the parsed flags.

  Raises:
    ValueError: if a flag is invalid.
  """
  goal, seeds = plan_flags.goal(values), plan_flags.seeds(values)
  points = candidates(values)
  dataset = data.load(points[0].config, values.data_dir)
  study = Study(
    values=values,
    points=tuple(points),
    seeds=tuple(seeds),
    dataset=dataset,
    examples=pilots.training_examples(dataset),
    goal=goal,
    step_time=values.step_time,
    workdir=None if values.workdir is None else pathlib.Path(values.workdir),
  )
  # All of them, so that an error comes before the first measurement.
  for point in points:
    assemble(study, point, seeds[0])
  if values['step_time'].present:
    return study
  return study._replace(step_time=step_timer(points[0], dataset)())


def step_timer(point: grids.Point, dataset: Dataset) -> Callable[[], float]:
  """Return a function that measures the seconds of a step of a run.

  Args:
    point: the run.
    dataset: its data.
  """
  every = interval(point, dataset)
  return pilots.step_timer(point.config, dataset, every=every)


def make(study: Study) -> Plan:
  """Train the pilots of all runs, and judge them.

  With several processes, each of them must call it.

  Args:
    study: what is compared.

  Raises:
    ValueError: if the directory has other pilots.
    LockError: if another process uses the directory.
  """
  with contextlib.ExitStack() as held:
    workdir = study.workdir
    if workdir is not None:
      lock = process_zero.held('the lock', lambda: locks.hold(workdir))
      held.enter_context(lock)
    found = _judge(study)
  return Plan(
    goal=study.goal,
    candidates=tuple(choices.order(found, study.goal)),
    seeds=study.seeds,
    step_time=study.step_time,
    is_measured=not study.values['step_time'].present,
    num_examples=pilots.size(study.examples),
    every=tuple(sorted({interval(x, study.dataset) for x in study.points})),
  )


def candidates(values: flags.FlagValues) -> list[grids.Point]:
  """Return the runs to compare, from --run and --grid.

  Args:
    values: the parsed flags.

  Raises:
    ValueError: if a run is invalid, or an axis changes what a plan measures
      once for all runs.
  """
  points = grids.points(values.run or RUNS, values.grid, values)
  for name in (name for point in points for name in point.values):
    if name in ('seed', 'pilot_seeds'):
      raise ValueError(
        f'--grid={name} is not an axis of a plan; use --pilot_seeds'
      )
    if name in ONE_FOR_ALL:
      raise ValueError(
        f'--grid={name} is not an axis of a plan, whose runs share the data, '
        'the time of a step and the goal; make a plan for each value'
      )
  return points


def label(point: grids.Point) -> str:
  """Return the algorithm with its options and its settings on the axes."""
  settings = [
    f'{name}={text}'
    for name, text in point.values.items()
    if not grids.is_option(name)
  ]
  return ' '.join([point.config.label(), *settings])


def interval(point: grids.Point, dataset: Dataset) -> int:
  """Return the steps between two evaluations of the pilots of a run.

  Args:
    point: the run.
    dataset: its data.
  """
  plan = experiment.build_plan(point.config, dataset.num_examples)
  return plan_flags.every(point.flags, plan.num_steps)


def _judge(study: Study) -> list[Candidate]:
  bar = tqdm.tqdm(
    total=len(study.points) * len(study.seeds),
    unit='pilot',
    disable=not (study.values.progress and processes.is_first()),
  )
  found = []
  with bar:
    for point in study.points:
      results = []
      for seed in study.seeds:
        bar.set_postfix_str(f'{label(point)}, seed {seed}')
        results.append(choices.judge(_trial(study, point, seed), study.goal))
        bar.update()
      found.append(Candidate(label(point), tuple(results)))
  return found


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
      every=interval(point, study.dataset),
      is_enough=choices.enough(parts.meter, num_steps, study.goal),
    )
  return Trial(parts.meter, num_steps, pilot)


def assemble(study: Study, point: grids.Point, seed: int) -> Parts:
  """Return the parts of a run with one seed.

  Args:
    study: what is compared.
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
    block=study.values.block,
  )
