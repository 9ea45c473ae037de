"""Data-parallel SGD that communicates less, on JAX."""

from prsgd_jax.algorithms import (
  d_psgd,
  hier_avg,
  k_avg,
  local_sgd,
  one_shot_averaging,
  pr_sgd,
  ssgd,
)
from prsgd_jax.analysis import consensus_distance
from prsgd_jax.base import (
  AXIS_NAME,
  Context,
  Replica,
  ReplicaTransformation,
  Traffic,
  chain,
)
from prsgd_jax.datasets import Dataset, load_dataset
from prsgd_jax.input_pipeline import (
  dirichlet,
  from_shards,
  make_batch_fn,
  sharded,
  shared,
  stack_batches,
)
from prsgd_jax.ledger import Account, account
from prsgd_jax.mixing import Message, Mixing, dense, group_mean, mean, ring
from prsgd_jax.replica_mesh import ReplicaMesh
from prsgd_jax.schedules import always, any_of, at, every, never, post_local
from prsgd_jax.train_state import (
  TrainState,
  consensus,
  create_train_state,
  replica_shapes,
)
from prsgd_jax.training import (
  make_evaluate,
  make_evaluate_replicas,
  make_resident_train_steps,
  make_train_steps,
  shard_examples,
)
from prsgd_jax.transforms import (
  gradient,
  local_update,
  reset_buffers,
  sync,
  while_active,
)

__all__ = (
  'AXIS_NAME',
  'Account',
  'Context',
  'Dataset',
  'Message',
  'Mixing',
  'Replica',
  'ReplicaMesh',
  'ReplicaTransformation',
  'Traffic',
  'TrainState',
  'account',
  'always',
  'any_of',
  'at',
  'chain',
  'consensus',
  'consensus_distance',
  'create_train_state',
  'd_psgd',
  'dense',
  'dirichlet',
  'every',
  'from_shards',
  'gradient',
  'group_mean',
  'hier_avg',
  'k_avg',
  'load_dataset',
  'local_sgd',
  'local_update',
  'make_batch_fn',
  'make_evaluate',
  'make_evaluate_replicas',
  'make_resident_train_steps',
  'make_train_steps',
  'mean',
  'never',
  'one_shot_averaging',
  'post_local',
  'pr_sgd',
  'replica_shapes',
  'reset_buffers',
  'ring',
  'shard_examples',
  'sharded',
  'shared',
  'ssgd',
  'stack_batches',
  'sync',
  'while_active',
)
