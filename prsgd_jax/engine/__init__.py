"""ENGINE: training, evaluation and checkpoints of N replicas on D devices.

`trainer` is the way in; it joins the other files. `replica_mesh` places the
replicas, `train_state` holds their arrays, `training` compiles the steps.
`feeding`, `stacking` and `prefetching` bring batches, and `waiting` measures
how long the devices lack them. `run_state` shows results, `memo` reuses
programs, `cpu_tuning` changes settings of the process. Inside, arrays are
`[D, V, ...]`: V replicas on each device.
"""

from prsgd_jax.engine.batch_statistics import (
  make_reestimate,
)
from prsgd_jax.engine.cpu_tuning import tune_cpu
from prsgd_jax.engine.evaluation import (
  make_evaluate,
  make_evaluate_replicas,
  shard_examples,
)
from prsgd_jax.engine.feeding import (
  make_batch_fn,
  stack_batches,
)
from prsgd_jax.engine.many_runs import map_runs
from prsgd_jax.engine.non_finite import NonFinite
from prsgd_jax.engine.replica_mesh import (
  ReplicaMesh,
)
from prsgd_jax.engine.retention import Retention
from prsgd_jax.engine.train_state import (
  TrainState,
  consensus,
  create_train_state,
  replica_shapes,
)
from prsgd_jax.engine.training import (
  make_resident_train_steps,
  make_train_steps,
)

__all__ = (
  'NonFinite',
  'ReplicaMesh',
  'Retention',
  'TrainState',
  'consensus',
  'create_train_state',
  'make_batch_fn',
  'make_evaluate',
  'make_evaluate_replicas',
  'make_reestimate',
  'make_resident_train_steps',
  'make_train_steps',
  'map_runs',
  'replica_shapes',
  'shard_examples',
  'stack_batches',
  'tune_cpu',
)
