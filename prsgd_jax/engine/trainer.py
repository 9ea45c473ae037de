"""TRAINER: the way in. It trains an algorithm and a loss on N replicas.

A trainer is a NamedTuple of pure functions. It joins the parts of the engine:
the mesh, the compiled steps, the placement of data, evaluation, averaging, the
ledger and checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import ledger
from prsgd_jax.base import ArrayTree, Replica, ReplicaTransformation
from prsgd_jax.checks import check_bool, check_length
from prsgd_jax.data.pipelines import Pipeline
from prsgd_jax.data.values import Resident, Stream, check_resident
from prsgd_jax.engine import checkpoints, resizing
from prsgd_jax.engine.checkpoint_leaves import Leaves
from prsgd_jax.engine.evaluation import (
  EvalFn,
  make_evaluate,
  make_evaluate_replicas,
)
from prsgd_jax.engine.mapping import PMAP
from prsgd_jax.engine.memo import Memo, TrainSteps, make_memo
from prsgd_jax.engine.non_finite import NonFinite, make_find_non_finite
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.run_state import State, by_step, check_own
from prsgd_jax.engine.spent import make_spent
from prsgd_jax.engine.stacking import stacked
from prsgd_jax.engine.train_state import (
  TrainState,
  check_algorithm,
  consensus,
  create_train_state,
  initial_shapes,
  replica_shapes,
)
from prsgd_jax.engine.training import LossFn, make_block
from prsgd_jax.engine.waiting import Waiting, make_waiting
from prsgd_jax.ledger.network import NETWORK, Network
from prsgd_jax.names import check_complete
from prsgd_jax.tracing.caller_functions import LOSS, check_signature
from prsgd_jax.tracing.keys import from_data, to_data
from prsgd_jax.tree_types import describe

EVAL_BATCH = 500

Data = Resident | Stream | Pipeline


class Trainer(NamedTuple):
  """Pure functions of a state; `trainer` makes them.

  Attributes:
    init: `(params, model_state=(), *, seed=0, per_replica=False) -> State`. All
      replicas start at one point, or with `per_replica` at N points `[N, ...]`.
    run: `(state, data, num_steps) -> (state, metrics)`, with metrics `[steps,
      N, ...]`: `loss` and the metrics of `loss_fn`. The state passed is used
      up, so continue with the one returned. It does not wait for the devices.
    evaluate: `(state, arrays, *, batch_size=500, reestimate=None) -> dict of
      floats`, means of `eval_fn` of the averaged model over the examples
      `[n, ...]`, and `consensus_distance`, the mean squared distance of the
      replicas from their average. `reestimate`, training data in memory, are
      for new batch statistics of the average, see `engine.make_reestimate`.
    evaluate_replicas: `(state, arrays, *, batch_size=500) -> dict of float[N]`,
      means of `eval_fn` of each replica over the examples `[n, ...]`.
    average: `(state, *, reestimate=None) -> (params, model_state)`, the
      averaged model in NumPy arrays. All replicas count alike, see
      `engine.consensus`.
    account: `(state, num_steps, network=NETWORK) -> ledger.Account`, gradients,
      rounds, bytes and modeled seconds after every step of a run of
      `num_steps`. The result of `shapes` may replace the state.
    spent: `(state, network=NETWORK) -> ledger.Spent`, the totals of the steps
      done, including data-dependent rounds.
    shapes: `(params, model_state=()) -> Replica` of shapes, without devices.
    save: `(directory, state, description={}, *, notes=None, keep=None) ->
      path`, a checkpoint of all replicas in `directory/<step>`. `notes`, a dict
      of JSON types such as the position of a loader, are kept with it;
      `engine.checkpoints.read_notes(directory, step)` returns them. `keep` is
      the number of newest checkpoints that stay, or an
      `engine.Retention`. Default: all.
    save_in_background: `save`, but returns a future at once: a thread writes
      while training continues. Call its `result()`, which waits and raises the
      error of a failed save, before the program ends.
    restore: `(directory, like, description={}, step=None, *, resize=False,
      survivors=None) -> State`, the checkpoint of a step, by default the
      newest. `like` is a state that `init` made. `description` must equal the
      saved one. With `resize` the checkpoint may have another number of
      replicas, see `engine.resizing.resize`.
    find_non_finite: `(state, data, num_steps) -> engine.NonFinite or None`, the
      first replica and step of these steps with a NaN or infinity in its
      parameters, loss or gradient, on resident data. The state passed is kept.
    lower: `(state, data, num_steps) -> jax.stages.Lowered`, the program of
      `run` on resident data.
    waited: `() -> float`, the seconds in which the devices stood still because
      `run` had no batches, in all. Resident data never wait.
    block: `(params, model_state, batch) -> str`, how `run` computes the
      replicas of a device: 'vmap', 'unrolled' or 'loop', as passed or chosen
      for the loss. Arrays of one replica, or their shapes.
    mesh: the placement of the replicas.
  """

  init: Callable[..., State]
  run: Callable[[State, Data, int], tuple[State, ArrayTree]]
  evaluate: Callable[..., dict[str, float]]
  evaluate_replicas: Callable[..., dict[str, np.ndarray]]
  average: Callable[..., tuple[ArrayTree, ArrayTree]]
  account: Callable[..., ledger.Account]
  spent: Callable[..., ledger.Spent]
  shapes: Callable[..., Replica]
  save: Callable[..., pathlib.Path]
  save_in_background: Callable[..., Future[pathlib.Path]]
  restore: Callable[..., State]
  find_non_finite: Callable[[State, Data, int], NonFinite | None]
  lower: Callable[[State, Data, int], jax.stages.Lowered]
  waited: Callable[[], float]
  block: Callable[[ArrayTree, ArrayTree, Any], str]
  mesh: ReplicaMesh

  def __repr__(self) -> str:
    """Return the placement of the replicas, not addresses of functions."""
    return f'Trainer({self.mesh})'


def trainer(
  algorithm: ReplicaTransformation,
  loss_fn: LossFn,
  *,
  num_replicas: int,
  eval_fn: EvalFn | None = None,
  num_devices: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  map_by: str = PMAP,
  block: str | None = None,
) -> Trainer:
  """Join an algorithm and a loss for training on N replicas.

  `run` places the arrays of its data on the devices once, and compiles once for
  each kind of data and each `num_steps`. It recognizes arrays by identity and
  by some of their numbers, so a loop may call `trainer.run(state,
  pr.shared(arrays, batch_size=16), 50)`. Overwritten arrays are placed again,
  but a change of a few numbers may go unnoticed; pass a copy then. It remembers
  the newest 4 sets of arrays and 16 programs.

  With several processes (`jax.distributed.initialize`), the replicas are shared
  among them in order. Each process must make the same calls in the same order.
  Metrics, evaluations and views of a state are then equal on all processes.

  Args:
    algorithm: the algorithm, such as `pr.pr_sgd(optax.sgd(0.1), period=4)`.
    loss_fn: `(params, model_state, batch, key) -> (loss, (model_state,
      metrics))` of one replica, without collectives. `metrics` is a dict of
      arrays.
    num_replicas: N, >= 1.
    eval_fn: `(params, model_state, batch) -> dict of values [batch]` of one
      model. Default: none; `evaluate` needs one.
    num_devices: D, which must divide N. Default: the largest number of
      available devices that does.
    devices: the devices to choose from. Default: all of JAX's, of all
      processes.
    map_by: the function of JAX that maps over the devices, 'pmap' or
      'shard_map'. The results are equal bit for bit. Default: 'pmap'.
    block: how the replicas of a device are computed. 'vmap': by batched
      operations. 'unrolled': by operations for each replica, so compile time is
      proportional to their number. 'loop': one after the other. The results are
      equal up to rounding. Default: 'vmap'. On CPU, 'unrolled' for up to 128
      replicas of a loss with convolutions, and 'loop' for a loss with large
      intermediate arrays. This is measured on CPU, not yet on accelerators.

  Returns:
    The functions of a run, see `Trainer`.

  Raises:
    ValueError: if an argument is not as described.

  Example:
    >>> import jax.numpy as jnp, numpy as np, optax, prsgd_jax as pr
    >>> def loss_fn(params, model_state, batch, key):
    ...   return jnp.square(params - batch).mean(), (model_state, {})
    >>> algorithm = pr.pr_sgd(optax.sgd(0.1), period=4)
    >>> trainer = pr.trainer(algorithm, loss_fn, num_replicas=4, num_devices=1)
    >>> trainer
    Trainer(4 replicas on 1 cpu device (4 on each))
    >>> state = trainer.init(np.zeros(3, np.float32), seed=0)
    >>> data = pr.shared(np.ones((32, 3), np.float32), batch_size=2)
    >>> state, metrics = trainer.run(state, data, num_steps=8)
    >>> state.step, metrics['loss'].shape
    (8, (8, 4))
    >>> params, _ = trainer.average(state)
    >>> params.shape
    (3,)
  """
  _check(algorithm, loss_fn)
  mesh = ReplicaMesh(num_replicas, num_devices, devices, map_by, block)
  memo = make_memo(mesh, algorithm, loss_fn)
  setting = _Setting(mesh, algorithm, memo, make_waiting())
  evaluate, evaluate_replicas = _evaluation(setting, eval_fn)
  account, spent, shapes = _ledger(setting)
  save, save_in_background, restore = _checkpoints(setting)
  return Trainer(
    init=_init(setting),
    run=_run(setting),
    evaluate=evaluate,
    evaluate_replicas=evaluate_replicas,
    average=_average(setting),
    account=account,
    spent=spent,
    shapes=shapes,
    save=save,
    save_in_background=save_in_background,
    restore=restore,
    find_non_finite=make_find_non_finite(mesh, algorithm, loss_fn),
    lower=_lower(setting),
    waited=setting.waiting.seconds,
    block=make_block(mesh, loss_fn),
    mesh=mesh,
  )


class _Setting(NamedTuple):
  """The parts that the functions of a trainer share."""

  mesh: ReplicaMesh
  algorithm: ReplicaTransformation
  memo: Memo
  waiting: Waiting


def _check(algorithm: Any, loss_fn: Any) -> None:
  if not isinstance(algorithm, ReplicaTransformation):
    raise ValueError(
      'trainer expects (algorithm, loss_fn, num_replicas=...), such as '
      'pr.trainer(pr.k_avg(optax.sgd(0.1), period=4), loss_fn, '
      f'num_replicas=8), got {describe(algorithm)} as the algorithm'
    )
  check_signature(LOSS, loss_fn)
  check_complete(algorithm.names)


def _init(setting: _Setting) -> Callable[..., State]:
  mesh, algorithm = setting.mesh, setting.algorithm

  def init(
    params: ArrayTree,
    model_state: ArrayTree = (),
    *,
    seed: int = 0,
    per_replica: bool = False,
  ) -> State:
    made = create_train_state(
      mesh, algorithm, params, model_state, seed=seed, per_replica=per_replica
    )
    return State(made, mesh)

  return init


def _run(
  setting: _Setting,
) -> Callable[[State, Data, int], tuple[State, ArrayTree]]:
  mesh, memo, waiting = setting.mesh, setting.memo, setting.waiting

  def run(state: State, data: Data, num_steps: int) -> tuple[State, ArrayTree]:
    """Train for `num_steps` steps on the data."""
    own = check_own('run', mesh, state)
    if isinstance(data, Stream):
      pieces = stacked(mesh, data, num_steps)
      return streamed(memo.streamed_steps(None), own, pieces)
    if isinstance(data, Pipeline):
      flow = memo.flow(data)
      pieces = flow.take(own.step, num_steps)
      train_steps = memo.streamed_steps(data.transform)
      state, metrics = streamed(train_steps, own, pieces)
      flow.continue_at(state.on_devices.step)
      return state, metrics
    data = check_resident('run', data)
    train_steps = memo.resident_steps(data.recipe)
    own, metrics = train_steps(own, memo.place(data.arrays), num_steps)
    return State(own, mesh), by_step(mesh, metrics)

  def streamed(
    train_steps: TrainSteps, own: TrainState, pieces: Iterator[Any]
  ) -> tuple[State, ArrayTree]:
    collected = []
    for batches in waiting.timed(pieces):
      own, metrics = train_steps(own, batches)
      collected.append(by_step(mesh, metrics))
    metrics = jax.tree.map(lambda *xs: jnp.concatenate(xs), *collected)
    return State(own, mesh), metrics

  return run


def _evaluation(
  setting: _Setting, eval_fn: EvalFn | None
) -> tuple[Callable[..., dict[str, float]], Callable[..., dict[str, Any]]]:
  mesh, algorithm, memo, _ = setting
  if eval_fn is None:

    def refuse(*args: Any, **kwargs: Any) -> Any:
      del args, kwargs
      raise ValueError(
        'evaluate needs pr.trainer(..., eval_fn=...), a function (params, '
        'model_state, batch) -> dict of values [batch]'
      )

    return refuse, refuse
  average = make_evaluate(mesh, algorithm, eval_fn)
  replicas = make_evaluate_replicas(mesh, algorithm, eval_fn)

  def evaluate(
    state: State,
    arrays: ArrayTree,
    *,
    batch_size: int = EVAL_BATCH,
    reestimate: Resident | None = None,
  ) -> dict[str, float]:
    """Evaluate the averaged model."""
    own = check_own('evaluate', mesh, state)
    examples = memo.place_examples(arrays, batch_size)
    if reestimate is None:
      return average(own, examples)
    data = check_resident('reestimate', reestimate)
    return average(own, examples, memo.refresh(data))

  def evaluate_replicas(
    state: State, arrays: ArrayTree, *, batch_size: int = EVAL_BATCH
  ) -> dict[str, np.ndarray]:
    """Evaluate every replica."""
    own = check_own('evaluate_replicas', mesh, state)
    return replicas(own, memo.place_examples(arrays, batch_size))

  return evaluate, evaluate_replicas


def _average(
  setting: _Setting,
) -> Callable[..., tuple[ArrayTree, ArrayTree]]:
  mesh, algorithm, memo, _ = setting

  def average(
    state: State, *, reestimate: Resident | None = None
  ) -> tuple[ArrayTree, ArrayTree]:
    """Average the replicas."""
    point = consensus(algorithm, check_own('average', mesh, state), mesh)
    if reestimate is None:
      return point
    refresh = memo.refresh(check_resident('reestimate', reestimate))
    moved = refresh(mesh.replicate(point))
    return from_data(jax.tree.map(first, to_data(moved)), point)

  return average


def _ledger(
  setting: _Setting,
) -> tuple[
  Callable[..., ledger.Account],
  Callable[..., ledger.Spent],
  Callable[..., Replica],
]:
  mesh, algorithm = setting.mesh, setting.algorithm
  n = mesh.num_replicas
  count = make_spent(algorithm, n)

  def account(
    state: State | Replica, num_steps: int, network: Network = NETWORK
  ) -> ledger.Account:
    """Count the cost of a run of `num_steps` steps."""
    known = state
    if not isinstance(known, Replica):
      known = replica_shapes(check_own('account', mesh, state))
    return ledger.account(algorithm, known, n, num_steps, network)

  def spent(state: State, network: Network = NETWORK) -> ledger.Spent:
    """Count the cost of the steps done."""
    own = check_own('spent', mesh, state)
    check_algorithm(algorithm, own, n)
    return count(own, state.step, network)

  def shapes(params: ArrayTree, model_state: ArrayTree = ()) -> Replica:
    """Return the shapes of one replica."""
    return initial_shapes(algorithm, n, params, model_state)

  return account, spent, shapes


def _checkpoints(
  setting: _Setting,
) -> tuple[
  Callable[..., pathlib.Path],
  Callable[..., Future[pathlib.Path]],
  Callable[..., State],
]:
  mesh, algorithm = setting.mesh, setting.algorithm

  def save(
    directory: str | pathlib.Path,
    state: State,
    description: Mapping[str, Any] = {},
    *,
    notes: Mapping[str, Any] | None = None,
    keep: int | checkpoints.Retention | None = None,
  ) -> pathlib.Path:
    """Save all replicas."""
    own = check_own('save', mesh, state)
    return checkpoints.save(
      directory, mesh, own, description, notes=notes, keep=keep
    )

  def save_in_background(
    directory: str | pathlib.Path,
    state: State,
    description: Mapping[str, Any] = {},
    *,
    notes: Mapping[str, Any] | None = None,
    keep: int | checkpoints.Retention | None = None,
  ) -> Future[pathlib.Path]:
    """Save all replicas in a thread."""
    own = check_own('save_in_background', mesh, state)
    return checkpoints.save_in_background(
      directory, mesh, own, description, notes=notes, keep=keep
    )

  def restore(
    directory: str | pathlib.Path,
    like: State,
    description: Mapping[str, Any] = {},
    step: int | None = None,
    *,
    resize: bool = False,
    survivors: Sequence[int] | None = None,
  ) -> State:
    """Restore all replicas."""
    own = check_own('restore', mesh, like)
    if survivors is not None and not check_bool('resize', resize):
      raise ValueError('survivors does nothing without resize=True')

    def resized(leaves: Leaves) -> Leaves:
      n = mesh.num_replicas
      return resizing.resize(algorithm, own, leaves, n, survivors)

    found = checkpoints.restore(
      directory,
      mesh,
      own,
      description,
      step,
      resize=resized if check_bool('resize', resize) else None,
    )
    return State(found, mesh)

  return save, save_in_background, restore


def _lower(
  setting: _Setting,
) -> Callable[[State, Data, int], jax.stages.Lowered]:
  mesh, memo = setting.mesh, setting.memo

  def lower(state: State, data: Data, num_steps: int) -> jax.stages.Lowered:
    """Lower the program of `run`."""
    own = check_own('lower', mesh, state)
    data = check_resident('lower', data)
    num_steps = check_length('num_steps', num_steps)
    train_steps: Any = memo.resident_steps(data.recipe)
    return train_steps.lower(own, memo.place(data.arrays), num_steps)

  return lower
