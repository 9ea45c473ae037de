"""Runs that differ in their period, by the same two compiled programs.

A period is a constant of a compiled program, so six periods need six programs.
On a CPU, compiling a convolutional network takes longer than training it. Here
one program averages in every step and one in none. The host chooses between
them; the trajectories are those of `target.train`.
"""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from experiments.running.execution import experiment
from experiments.running.execution.parts import Parts
from experiments.running.flags import config
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.engine.run_state import State

# A period without any average, because no run is as long.
NEVER = 2**30


def subset(dataset: Dataset, num_train: int, num_test: int) -> Dataset:
  """Return the first examples of each split."""
  train, test = (
    {name: values[:size] for name, values in split.items()}
    for split, size in ((dataset.train, num_train), (dataset.test, num_test))
  )
  return dataset._replace(train=train, test=test)


def train_all(
  run_configs: Sequence[config.RunConfig],
  dataset: Dataset,
  *,
  log_every: int,
  eval_every: int,
  network: pr.ledger.Network = pr.ledger.NETWORK,
) -> list[list[records.Record]]:
  """Train by every config; return the records without writing them.

  Args:
    run_configs: with algorithms whose only schedule is their `period`, or
      without a schedule. Those that differ by their seed share the programs and
      the order of the data of the first seed.
    dataset: the data set that all configs name, or a part of it.
    log_every: steps between records, whose losses are means over these steps.
    eval_every: steps between evaluations, a multiple of `log_every`. The last
      step is always evaluated.
    network: network of the modeled time.
  """
  programs: dict[str, Parts] = {}
  histories = []
  for run_config in run_configs:
    parts = experiment.assemble(run_config, dataset, None, network)
    period = run_config.options.get('period', 1)
    chosen = []
    for own in (NEVER, 1) if 'period' in run_config.options else (None,):
      options = {**run_config.options, **({'period': own} if own else {})}
      # The seed of the first, because compiling takes longest.
      same = dataclasses.replace(
        run_config, options=options, seed=run_configs[0].seed
      )
      if repr(same) not in programs:
        programs[repr(same)] = experiment.assemble(same, dataset, None, network)
      chosen.append(programs[repr(same)])
    seeded = chosen[0]._replace(seed=run_config.seed)
    histories.append(
      _train(parts, period, chosen, log_every, eval_every, seeded.first_state())
    )
  return histories


def _train(
  parts: Parts,
  period: int,
  programs: Sequence[Parts],
  log_every: int,
  eval_every: int,
  state: State,
) -> list[records.Record]:
  """Train by the last program at every `period`-th step, else by the first."""
  num_steps = parts.plan.num_steps
  meter, position = parts.meter, parts.meter.init()
  averages = pr.schedules.every(period)
  local, common = programs[0], programs[-1]
  history, losses = [], []
  for done in range(1, num_steps + 1):
    program = common if averages(done - 1) else local
    state, metrics = program.trainer.run(state, program.data, 1)
    losses.append(metrics['loss'])
    if done % log_every and done < num_steps:
      continue
    position = meter.advance(position, done)
    spent = meter.spent(position)
    record = {
      'step': done,
      'epoch': parts.epoch(spent.gradients),
      'loss': float(np.mean(jax.device_get(losses))),
      'rounds': spent.rounds,
      'bytes_sent': spent.bytes_sent,
      'modeled_seconds': spent.seconds,
    }
    losses = []
    if done % eval_every == 0 or done == num_steps:
      means = common.trainer.evaluate(state, common.test)
      record['test_loss'] = means['loss']
      record['test_accuracy'] = means['accuracy']
    history.append(record)
  return history
