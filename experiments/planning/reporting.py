"""Describe a plan: its table, the recommendation and the warnings."""

from collections.abc import Callable, Iterable, Sequence
import math
from typing import Any

from experiments.planning import choices
from experiments.planning.choices import REACHED, Candidate, Goal, Result
from experiments.planning.plans import Plan
from experiments.running.records import units, writing
from experiments.tools import tables
from experiments.tools.tables import Column


def text(plan: Plan, form: str) -> str:
  """Return a plan as text.

  Args:
    plan: the plan.
    form: 'table' for a terminal or 'markdown', with the recommendation and the
      conditions below; 'csv' or 'json', with exact numbers for each seed.
  """
  advice = recommendation(plan)
  if form == 'csv':
    return tables.csv(rows(plan))
  if form == 'json':
    return writing.to_json(
      {
        'recommendation': advice,
        'warnings': warnings(plan),
        'conditions': conditions(plan),
        'runs': rows(plan),
      }
    )
  show = tables.aligned if form == 'table' else tables.markdown
  table = show(cells(plan), columns(plan.goal))
  return f'{table}\n{advice}\n\n{conditions(plan)}\n'


def rows(plan: Plan) -> list[dict[str, Any]]:
  """Return a row for each run, the best first, with numbers for each seed.

  Args:
    plan: the plan.
  """
  return [
    {
      'algorithm': candidate.label,
      'reached': candidate.answers(plan.goal),
      'states': [r.state for r in candidate.results],
      'steps': [r.steps for r in candidate.results],
      'loss': [r.loss for r in candidate.results],
      'rounds': [r.rounds for r in candidate.results],
      'bytes_sent': [r.bytes_sent for r in candidate.results],
      'modeled_seconds': [r.seconds for r in candidate.results],
    }
    for candidate in plan.candidates
  ]


def columns(goal: Goal) -> list[Column]:
  """Return the columns of the table of texts.

  Args:
    goal: the goal of the plan.
  """
  steps = 'steps in the budget' if goal.target_loss is None else 'steps'
  loss = 'loss' if goal.target_loss is None else 'lowest loss'
  return [
    Column('algorithm'),
    Column('steps', steps, is_number=True),
    Column('rounds', is_number=True),
    Column('sent', 'sent per replica', is_number=True),
    Column('seconds', 'modeled time, s', is_number=True),
    Column('loss', loss, is_number=True),
  ]


def cells(plan: Plan) -> list[dict[str, str]]:
  """Return the texts of the table: means over the seeds, and their ranges.

  A run that did not reach the goal has bounds instead, because no number is
  known.

  Args:
    plan: the plan.
  """
  return [_cells(candidate, plan.goal) for candidate in plan.candidates]


def _cells(candidate: Candidate, goal: Goal) -> dict[str, str]:
  results = candidate.results
  loss = spread([r.loss for r in results], '{:.4g}'.format)
  found = {'algorithm': candidate.label, 'loss': loss}
  if candidate.answers(goal):
    return {
      **found,
      'steps': spread([r.steps for r in results], '{:.0f}'.format),
      'rounds': spread([r.rounds for r in results], '{:.0f}'.format),
      'sent': spread([r.bytes_sent for r in results], units.size),
      'seconds': spread([r.seconds for r in results], _seconds),
    }
  missed = [r for r in results if r.state != REACHED]
  states = ', '.join(dict.fromkeys(r.state for r in missed))
  # A run over the budget may have reached the loss exactly there.
  sign = '≥' if any(r.state == choices.OVER_BUDGET for r in missed) else '>'
  return {
    **found,
    'steps': f'{sign} {min(r.steps for r in missed)} ({states})',
    'rounds': f'{sign} {min(r.rounds for r in missed)}',
    'sent': f'{sign} {units.size(min(r.bytes_sent for r in missed))}',
    'seconds': f'{sign} {_seconds(min(r.seconds for r in missed))}',
  }


def spread(values: Iterable[float], show: Callable[[float], str]) -> str:
  """Return the mean and the range as text; of equal values, only one."""
  found = list(values)
  if len({show(value) for value in found}) == 1:
    return show(found[0])
  return tables.spread(found, show)


def _seconds(value: float) -> str:
  return f'{value:.0f}' if value >= 1000 else f'{value:.3g}'


def recommendation(plan: Plan) -> str:
  """Return one sentence: the run to use, or that none is known.

  Args:
    plan: the plan.
  """
  best, goal, count = plan.candidates[0], plan.goal, len(plan.seeds)
  if not best.answers(goal):
    return (
      f'No recommendation, because no run reaches {_wanted(goal)} with '
      f'{_seeds(count)}.'
    )
  if goal.target_loss is None:
    found = spread([r.loss for r in best.results], '{:.4g}'.format)
    text = f'Use {best.label}: it reaches {_wanted(goal)}, {found}'
  else:
    found = spread([r.seconds for r in best.results], _seconds)
    text = (
      f'Use {best.label}: it is the first to reach {_wanted(goal)}, after '
      f'{found} s of modeled time'
    )
  won = choices.wins(plan.candidates, goal)
  if won[0] == count:
    return f'{text}; it is the best with {_seeds(count)}.'
  rivals = ', '.join(
    f'{candidate.label} with {number}'
    for candidate, number in zip(plan.candidates[1:], won[1:], strict=True)
    if number
  )
  return (
    f'{text}; it is the best with only {won[0]} of the {count} seeds '
    f'({rivals}).'
  )


def _seeds(count: int) -> str:
  return {1: 'the only seed', 2: 'both seeds'}.get(count, f'all {count} seeds')


def _wanted(goal: Goal) -> str:
  """Return what the goal asks for."""
  within = f' within {_budget(goal)}' if _budget(goal) else ''
  if goal.target_loss is None:
    return f'the lowest loss{within}'
  return f'a loss of {goal.target_loss:g}{within}'


def _budget(goal: Goal) -> str:
  """Return the budget as text, '' if it is unlimited."""
  parts = []
  if math.isfinite(goal.seconds):
    parts.append(f'{goal.seconds:g} s')
  if math.isfinite(goal.bytes_sent):
    parts.append(f'{units.size(goal.bytes_sent)} per replica')
  return ' and '.join(parts)


def warnings(plan: Plan) -> list[str]:
  """Return a sentence for each run whose pilots gave no full answer.

  Args:
    plan: the plan.
  """
  best, goal = plan.candidates[0], plan.goal
  found = []
  for candidate in plan.candidates:
    missed = [r for r in candidate.results if r.state != REACHED]
    if not missed:
      continue
    count = f'{len(missed)} of {len(candidate.results)} pilots'
    text = f'{candidate.label}: {count} {_missed(missed, goal)}'
    if candidate != best and choices.may_still_win(candidate, best, goal):
      text += '; longer pilots may change the recommendation'
    found.append(text)
  return found


def _missed(missed: Sequence[Result], goal: Goal) -> str:
  """Return how pilots missed the goal, and what to type."""
  states = {result.state for result in missed}
  if choices.DIVERGED in states:
    return (
      'gave no answer, because the loss was not finite; try a lower '
      '--learning_rate'
    )
  if choices.OVER_BUDGET in states:
    return f'exceed {_budget(goal)} before the goal'
  steps = min(result.steps for result in missed)
  if goal.target_loss is None:
    return f'ended within the budget, after {steps} steps; raise --num_steps'
  lowest = spread([result.loss for result in missed], '{:.4g}'.format)
  return (
    f'did not reach a loss of {goal.target_loss:g} in {steps} steps (lowest '
    f'{lowest}), so no time is given; raise --num_steps or --target_loss'
  )


def conditions(plan: Plan) -> str:
  """Return how the numbers were found, in a few sentences.

  Args:
    plan: the plan.
  """
  numbers: Sequence[int] = plan.seeds
  seeds = f'seed {numbers[0]}'
  if len(numbers) > 1:
    seeds = f'seeds {numbers[0]} to {numbers[-1]}'
  every = ' or '.join(map(str, plan.every))
  source = 'measured on this machine' if plan.is_measured else 'as given'
  return (
    f'Steps and losses are measured in pilots with {seeds}, evaluated every '
    f'{every} steps on {plan.num_examples} training examples. Nothing is '
    'extrapolated. The ledger counts time and bytes at these steps, '
    f'up to the end of a round; a step takes {units.duration(plan.step_time)} '
    f'({source}).'
  )
