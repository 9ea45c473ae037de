"""Flags of simulated faults; `faults` reads their values."""

from absl import flags

from prsgd_jax.faults.injection import REJOIN

flags.DEFINE_string(
  'faults',
  None,
  'Simulated faults, separated by commas. crash:REPLICA:STEP[:END] and '
  'late:REPLICA[:STEP[:END]]: the replica is dead, or misses its rounds, from '
  'STEP to before END. slow:REPLICA:FACTOR[:STEP[:END]]: its gradients take '
  'FACTOR times as long in modeled time. nan:REPLICA:STEP[:END]: its gradient '
  'is NaN; nan_params: its parameters. random_crashes:P:STEPS: dead with '
  'probability P in each block of STEPS steps. random_delays:P, random_nans:P: '
  'late, or NaN, with probability P in each step. Replicas and steps count '
  'from 0. Default: none.',
)
flags.DEFINE_enum(
  'rejoin',
  None,
  list(REJOIN),
  'State of a replica after a crash in --faults. peer: a copy of the first '
  'replica that was alive. stale: its state before the crash. Default: peer.',
)
