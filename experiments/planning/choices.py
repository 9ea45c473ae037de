"""Decide which run reaches a goal first, from pilots and the ledger.

Pilots measure the steps to a loss. Nothing is fitted or extrapolated. The
ledger counts rounds, bytes and seconds at these steps. The averaged
model exists only after a round, so a run that reaches the loss between two
rounds counts up to the next one.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.planning.pilots import Enough, Pilot, Point
import prsgd_jax as pr
from prsgd_jax.base import Decided

# States of a result.
REACHED = 'reached'
ENDED = 'the pilot ended'
OVER_BUDGET = 'over budget'
DIVERGED = 'diverged'


class Goal(NamedTuple):
  """What is asked of a run.

  Attributes:
    target_loss: loss of the averaged model to reach soonest; None to reach the
      lowest loss within the budget.
    seconds: budget of modeled time.
    bytes_sent: budget of bytes that one replica sends.
  """

  target_loss: float | None
  seconds: float = math.inf
  bytes_sent: float = math.inf


class Trial(NamedTuple):
  """A run with one seed: what it costs, and its pilot.

  Attributes:
    meter: ledger of the run.
    num_steps: length of the run in steps.
    pilot: what was measured.
  """

  meter: pr.ledger.Meter
  num_steps: int
  pilot: Pilot


class Result(NamedTuple):
  """The outcome of a trial with respect to the goal.

  Attributes:
    state: REACHED if the target was reached within the budget or, without a
      target, if the pilot used up the budget; OVER_BUDGET if the budget is too
      small; DIVERGED if the loss was not finite; ENDED if the pilot was too
      short for an answer.
    steps: number of steps up to the goal, or to the end of the pilot.
    loss: loss of the averaged model there; if a target was not reached, the
      lowest loss of the pilot.
    rounds: rounds of communication in these steps.
    bytes_sent: bytes that one replica sends in these steps.
    seconds: modeled time of these steps.
  """

  state: str
  steps: int
  loss: float
  rounds: int
  bytes_sent: float
  seconds: float


class Candidate(NamedTuple):
  """A run that could be recommended: a result for each seed."""

  label: str
  results: tuple[Result, ...]

  def answers(self, goal: Goal) -> bool:
    """Return whether the goal is reached with every seed.

    Without a target, a pilot that ended within the budget counts, because the
    run could stop there.

    Args:
      goal: the goal.
    """
    fine = {REACHED} if goal.target_loss is not None else {REACHED, ENDED}
    return all(result.state in fine for result in self.results)


def enough(meter: pr.ledger.Meter, num_steps: int, goal: Goal) -> Enough:
  """Return the function that ends a pilot when the goal is decided.

  Args:
    meter: ledger of the run.
    num_steps: length of the run in steps.
    goal: the goal.
  """

  def is_enough(points: Sequence[Point]) -> bool:
    if not points:
      return False
    last = points[-1]
    if not within(_spent(meter, last.step, last.decided), goal):
      return True
    found = _first(points, goal)
    if found is None:
      return False
    return last.step >= end_of_round(meter, found.step, num_steps)

  return is_enough


def judge(trial: Trial, goal: Goal) -> Result:
  """Return the outcome of a trial, from its pilot and its ledger.

  Args:
    trial: the trial.
    goal: the goal.
  """
  if goal.target_loss is None:
    return _within_budget(trial, goal)
  points = trial.pilot.points
  found = _first(points, goal)
  if found is not None:
    steps = end_of_round(trial.meter, found.step, trial.num_steps)
    fits = within(_spent(trial.meter, steps, found.decided), goal)
    state = REACHED if fits else OVER_BUDGET
    return _result(trial, state, steps, found.loss, found.decided)
  if not points:
    return _result(trial, _unfinished(trial), 0, math.nan, ())
  last = points[-1]
  fits = within(_spent(trial.meter, last.step, last.decided), goal)
  state = _unfinished(trial) if fits else OVER_BUDGET
  lowest = min(point.loss for point in points)
  return _result(trial, state, last.step, lowest, last.decided)


def _within_budget(trial: Trial, goal: Goal) -> Result:
  """Return the last evaluation whose round ends within the budget."""
  best = _result(trial, _unfinished(trial), 0, math.nan, ())
  for point in trial.pilot.points:
    steps = end_of_round(trial.meter, point.step, trial.num_steps)
    if not within(_spent(trial.meter, steps, point.decided), goal):
      return best._replace(state=REACHED if best.steps else OVER_BUDGET)
    best = _result(trial, _unfinished(trial), steps, point.loss, point.decided)
  return best


def _unfinished(trial: Trial) -> str:
  """Return the state of a trial whose pilot gave no answer."""
  return DIVERGED if trial.pilot.diverged else ENDED


def _result(
  trial: Trial, state: str, steps: int, loss: float, decided: Sequence[int]
) -> Result:
  spent = _spent(trial.meter, steps, decided)
  return Result(
    state, steps, loss, spent.rounds, spent.bytes_sent, spent.seconds
  )


def _first(points: Sequence[Point], goal: Goal) -> Point | None:
  """Return the first evaluation at or below the target."""
  if goal.target_loss is None:
    return None
  return next((p for p in points if p.loss <= goal.target_loss), None)


def within(spent: pr.ledger.Spent, goal: Goal) -> bool:
  """Return whether a cost is within the budget of a goal."""
  return spent.seconds <= goal.seconds and spent.bytes_sent <= goal.bytes_sent


def end_of_round(meter: pr.ledger.Meter, step: int, num_steps: int) -> int:
  """Return the number of steps at which the next round has ended.

  Of an algorithm with rounds of all replicas, these count, and of any other all
  rounds. Data-dependent rounds are not known beforehand, and a single replica
  has none; the result is then `step`.

  Args:
    meter: ledger of the run.
    step: number of steps done, >= 1.
    num_steps: length of the run in steps.

  Example:
    >>> import jax, numpy as np, optax, prsgd_jax as pr
    >>> shapes = pr.base.Replica(params=jax.ShapeDtypeStruct((3,), np.float32))
    >>> run = pr.ledger.meter(
    ...     pr.k_avg(optax.sgd(0.1), period=8), shapes, 4, num_steps=100)
    >>> end_of_round(run, 16, 100), end_of_round(run, 17, 100)
    (16, 24)
  """
  position = meter.advance(meter.init(), step - 1)
  sent = _sent(meter.spent(position))
  if meter.decided:
    return step
  for after in range(step, num_steps + 1):
    position = meter.advance(position, after)
    if _sent(meter.spent(position)) > sent:
      return after
  return num_steps if sent or _sent(meter.spent(position)) else step


def _sent(spent: pr.ledger.Spent) -> float:
  """Return the bytes of rounds of all replicas, if there are such rounds."""
  return spent.bytes_by_tier.get('global', spent.bytes_sent)


def _spent(
  meter: pr.ledger.Meter, step: int, decided: Sequence[int]
) -> pr.ledger.Spent:
  """Return the cost of some steps, with data-dependent rounds."""
  state = tuple(Decided(jnp.array([count])) for count in decided)
  position = meter.advance(meter.init(), step)
  return meter.spent(position, state)


def order(candidates: Sequence[Candidate], goal: Goal) -> list[Candidate]:
  """Sort candidates, the best first; those that missed the goal come last.

  Args:
    candidates: the candidates.
    goal: the goal.
  """

  def key(candidate: Candidate) -> tuple[bool, float]:
    mean = float(np.mean([_value(r, goal) for r in candidate.results]))
    return not candidate.answers(goal), mean if math.isfinite(
      mean
    ) else math.inf

  return sorted(candidates, key=key)


def _value(result: Result, goal: Goal) -> float:
  """Return the number by which results are compared; less is better."""
  return result.loss if goal.target_loss is None else result.seconds


def wins(candidates: Sequence[Candidate], goal: Goal) -> list[int]:
  """Return with how many seeds each candidate is the best.

  Only candidates that reach the goal with every seed are compared. With equal
  values, the first one counts.

  Args:
    candidates: the candidates.
    goal: the goal.
  """
  values = [
    [_value(r, goal) if c.answers(goal) else math.inf for r in c.results]
    for c in candidates
  ]
  best = np.argmin(np.array(values), axis=0)
  return np.bincount(best, minlength=len(candidates)).tolist()


def may_still_win(candidate: Candidate, best: Candidate, goal: Goal) -> bool:
  """Return whether a longer pilot could change the recommendation.

  Only a pilot that ended too early could. Its run cannot reach a target first
  if its steps already take more modeled time than the best candidate needs.

  Args:
    candidate: any candidate but the best.
    best: the best candidate.
    goal: the goal.
  """
  states = {result.state for result in candidate.results}
  if ENDED not in states or states - {ENDED, REACHED}:
    return False
  if goal.target_loss is None:
    return True
  own = np.mean([result.seconds for result in candidate.results])
  return bool(own < np.mean([result.seconds for result in best.results]))
