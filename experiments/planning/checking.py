"""Check a plan: train the recommended run and two others on real links.

Every host first measures its links and the time of a step. The plan is made
with these numbers and the pilots. Then the chosen runs train on the hosts until
the averaged model reaches the target, and the clock counts the training only.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import time
from typing import Any

from absl import flags

from experiments.hosts import comparing, measuring
from experiments.planning import choices, pilots, plans, reporting
from experiments.planning.plans import Plan, Study
from experiments.running.flags import data, grids
from experiments.running.records import json_files, records, units
from experiments.tools import disturbances, tables
from experiments.tools.tables import Column
from prsgd_jax.engine import processes
from prsgd_jax.engine.replica_mesh import ReplicaMesh

Measured = Mapping[str, Any]

# How often a run is trained while other programs disturb it, at most.
TRIES = 3
# How often the links are measured, at most, which takes a second.
LINK_TRIES = 20

_ROW_FORM = json_files.object_of(
  {
    'algorithm': json_files.text,
    'seed': json_files.count,
    'others': json_files.number,
    'planned_steps': json_files.count,
    'planned_seconds': json_files.number,
    'steps': json_files.count,
    'seconds': json_files.number,
    'losses': json_files.list_of(json_files.number),
  }
)
FORM = json_files.object_of(
  {
    'machine': json_files.object_of({}),
    'date': json_files.text,
    'hosts': json_files.count,
    'bits_per_second': json_files.number,
    'latency': json_files.number,
    'step_seconds': json_files.number,
    'others_at_links': json_files.number,
    'target_loss': json_files.number,
    'recommendation': json_files.text,
    'plan': json_files.list_of(json_files.object_of({})),
    'runs': json_files.list_of(_ROW_FORM),
  }
)


def measure(values: flags.FlagValues, bits_per_second: float) -> Measured:
  """Measure the links, plan, and train the chosen runs on all hosts.

  Every process must call it.

  Args:
    values: flags of the plan; the measured links replace the given ones.
    bits_per_second: rate of the links.

  Returns:
    The plan and the measurements, of JSON types.

  Raises:
    ValueError: if the plan has no target, or recommends nothing.
  """
  found = _links(values)
  rate = comparing.payload_rate(bits_per_second)
  for prefix in ('', 'group_'):
    values[f'{prefix}latency'].parse(repr(found['latency']))
    values[f'{prefix}bandwidth'].parse(repr(rate))
  values['step_time'].parse(repr(found['step_seconds']))
  study = plans.prepare(values)
  if study.goal.target_loss is None:
    raise ValueError('the check of a plan requires --target_loss')
  plan = plans.make(study)
  advice = reporting.recommendation(plan)
  if processes.is_first():
    print(advice, flush=True)
  if not plan.candidates[0].answers(plan.goal):
    raise ValueError(advice)
  return {
    'machine': records.machine(),
    'date': time.strftime('%Y-%m-%d', time.gmtime()),
    'hosts': processes.count(),
    'bits_per_second': bits_per_second,
    **found,
    'target_loss': study.goal.target_loss,
    'recommendation': advice,
    'plan': reporting.rows(plan),
    'runs': _train_all(study, plan),
  }


def _links(values: flags.FlagValues) -> dict[str, float]:
  """Return the seconds of a message and of a step, least disturbed."""
  point = plans.candidates(values)[0]
  mesh = ReplicaMesh(processes.count())
  step = plans.step_timer(point, data.load(point.config, values.data_dir))
  if processes.is_first():
    print('links', flush=True)
  best = {'others_at_links': math.inf}
  for _ in range(LINK_TRIES):
    before, begun = measuring.read_counters(), time.monotonic()
    found = {
      'latency': measuring.latency(mesh),
      'step_seconds': max(processes.collect('a step', step())),
    }
    lasted = time.monotonic() - begun
    others = measuring.share_of_others(before, lasted)
    found['others_at_links'] = others
    best = min(best, found, key=lambda x: x['others_at_links'])
    if others <= disturbances.DISTURBED:
      break
  return best


def chosen(plan: Plan) -> list[int]:
  """Return which candidates to train: the best, the second and the last.

  Only those that reach the goal count.

  Args:
    plan: the plan.
  """
  count = sum(c.answers(plan.goal) for c in plan.candidates)
  return sorted({0, min(1, count - 1), count - 1})


def _train_all(study: Study, plan: Plan) -> list[dict[str, Any]]:
  """Train the chosen runs with every seed, and return a row for each.

  They take turns. A run that other programs disturbed is trained again, and the
  least disturbed one counts.
  """
  points = {plans.label(point): point for point in study.points}
  rows: list[dict[str, Any]] = []
  trains = []
  for i, seed in enumerate(study.seeds):
    for index in chosen(plan):
      candidate = plan.candidates[index]
      planned = candidate.results[i]
      rows.append(
        {
          'algorithm': candidate.label,
          'seed': seed,
          'planned_steps': planned.steps,
          'planned_seconds': planned.seconds,
          'others': math.inf,
        }
      )
      trains.append(_compiled(study, points[candidate.label], seed))
  if processes.is_first():
    print('compiled', flush=True)
  for _ in range(TRIES):
    for row, train in zip(rows, trains, strict=True):
      if row['others'] > disturbances.DISTURBED:
        row |= min(row, train(), key=lambda found: found['others'])
  return rows


def _compiled(
  study: Study, point: grids.Point, seed: int
) -> Callable[[], dict[str, Any]]:
  """Compile a run; return the function that trains it up to the target."""
  parts = plans.assemble(study, point, seed)
  num_steps = parts.plan.num_steps

  def train(is_enough: pilots.Enough) -> Sequence[pilots.Point]:
    every = plans.interval(point, study.dataset)
    return pilots.train(
      parts, study.examples, every=every, is_enough=is_enough
    ).points

  def measured() -> dict[str, Any]:
    before, begun = measuring.read_counters(), time.monotonic()
    found = train(choices.enough(parts.meter, num_steps, study.goal))
    lasted = time.monotonic() - begun
    others = measuring.share_of_others(before, lasted)
    if processes.is_first():
      print(
        f'{plans.label(point)}, seed {seed}: {found[-1].seconds:.3g} s, others '
        f'{others:.0%}',
        flush=True,
      )
    return {
      'others': others,
      'steps': found[-1].step,
      'seconds': found[-1].seconds,
      'losses': [x.loss for x in found],
    }

  train(lambda points: len(points) > 0)
  return measured


def page(measured: Sequence[Measured]) -> str:
  """Return a Markdown table for each rate, with its conditions above it.

  Args:
    measured: results of `measure`.
  """
  return '\n'.join(
    f'{_conditions(one)}\n\n{tables.markdown(_rows(one), COLUMNS)}'
    for one in measured
  )


def _conditions(one: Measured) -> str:
  machine, rate = one['machine'], one['bits_per_second'] / 1e6
  disturbed = [row['others'] for row in one['runs']]
  others = max(one['others_at_links'], *disturbed)
  text = (
    f'**{rate:g} Mb/s**, {one["hosts"]} hosts; a message of 4 bytes takes '
    f'{units.duration(one["latency"])}, and a step without communication '
    f'{units.duration(one["step_seconds"])}. {one["recommendation"]} '
    f'The measured order {_equals(one)} the planned one. Measured on '
    f'{one["date"]} with {machine["cpus"]} {machine["processor"]} cores, '
    f'JAX {machine["jax"]}, Python {machine["python"]}, commit '
    f'{machine["commit"]}.'
  )
  if others > disturbances.DISTURBED:
    text += f' **Other programs used up to {others:.0%} of the processors.**'
  return text


def _equals(one: Measured) -> str:
  return 'equals' if is_in_order(one) else 'differs from'


def _rows(one: Measured) -> list[dict[str, Any]]:
  """Return a row for each trained algorithm, in the order of the plan."""
  return [
    {
      'algorithm': label,
      'planned_steps': list(same['planned_steps']),
      'steps': list(same['steps']),
      'planned_seconds': list(same['planned_seconds']),
      'seconds': list(same['seconds']),
      'ratio': list(same['seconds'] / same['planned_seconds']),
    }
    for (label,), same in tables.over_seeds(one['runs'], ('algorithm',))
  ]


def is_in_order(one: Measured) -> bool:
  """Return whether the runs took longer in the order of the plan, by means.

  Args:
    one: a result of `measure`.
  """
  means = [math.fsum(row['seconds']) for row in _rows(one)]
  return means == sorted(means)


def _column(name: str, title: str, form: str) -> Column:
  def show(values: Sequence[float]) -> str:
    return reporting.spread(values, lambda x: format(x, form))

  return Column(name, title, show, is_number=True)


COLUMNS = (
  Column('algorithm'),
  _column('planned_steps', 'steps, planned', '.0f'),
  _column('steps', 'measured', '.0f'),
  _column('planned_seconds', 'seconds, planned', '.3g'),
  _column('seconds', 'measured', '.3g'),
  _column('ratio', 'measured / planned', '.2f'),
)
