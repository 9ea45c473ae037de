"""Tests for your own algorithm: a NumPy loop, and laws of all algorithms.

An algorithm is correct if it matches a NumPy loop written from the paper.
`check_laws` runs both on a small problem in float64, because a tolerance of
1e-12 then tells any two algorithms apart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax.base import Array, ArrayTree, ReplicaTransformation
from prsgd_jax.checks import check_seed
from prsgd_jax.data.values import drawn
from prsgd_jax.engine.run_state import State
from prsgd_jax.engine.train_state import TrainState, replica_shapes
from prsgd_jax.engine.trainer import Trainer, trainer
from prsgd_jax.ledger.counting import Account, account
from prsgd_jax.tracing.keys import from_data, to_data

TOLERANCE = 1e-12


class Problem(NamedTuple):
  """N different noisy losses, one for each replica.

    f_i(x) = a_i . (x - b_i)^2 / 2 + sum_k log cosh(x_k)
    G_i(x) = grad f_i(x) + noise_i

  Attributes:
    curvature: a, float64[N, d], positive.
    target: b, float64[N, d].
    noise: float64[T, N, d].
    start: float64[d], where all replicas start.
  """

  curvature: np.ndarray
  target: np.ndarray
  noise: np.ndarray
  start: np.ndarray

  @property
  def num_steps(self) -> int:
    """Return T."""
    return self.noise.shape[0]

  @property
  def num_replicas(self) -> int:
    """Return N."""
    return self.noise.shape[1]

  def gradients(self, x: np.ndarray, step: int) -> np.ndarray:
    """Return the stochastic gradients G_i(x_i) of all replicas, float64[N, d].

    Args:
      x: the parameters of all replicas, float64[N, d].
      step: the 0-based step.
    """
    slope = self.curvature * (x - self.target) + np.tanh(x)
    return slope + self.noise[step]


def make_problem(
  num_replicas: int = 8, num_steps: int = 24, dim: int = 6, seed: int = 0
) -> Problem:
  """Return a random problem.

  Args:
    num_replicas: N. Default: 8.
    num_steps: T. Default: 24.
    dim: d, the number of parameters. Default: 6.
    seed: seed of the problem. Default: 0.

  Example:
    >>> make_problem(num_replicas=4).noise.shape
    (24, 4, 6)
  """
  rng = np.random.default_rng(check_seed('seed', seed))
  return Problem(
    curvature=rng.uniform(0.2, 1.5, (num_replicas, dim)),
    target=rng.normal(size=(num_replicas, dim)),
    noise=rng.normal(size=(num_steps, num_replicas, dim)),
    start=rng.normal(size=dim),
  )


class Report(NamedTuple):
  """Results of `check_laws`.

  Attributes:
    x: float64[T + 1, N, d], the parameters before and after each step.
    error: the largest absolute distance from the oracle; 0 without an oracle.
    layouts: the numbers of devices that were compared.
    account: the cost of the algorithm, from `ledger.account`.
  """

  x: np.ndarray
  error: float
  layouts: tuple[int, ...]
  account: Account


def check_laws(
  algorithm: ReplicaTransformation,
  oracle: Callable[[Problem], np.ndarray] | None = None,
  *,
  problem: Problem | None = None,
) -> Report:
  """Check an algorithm against its NumPy loop and the laws of all algorithms.

  1. The replicas match the oracle at every step.
  2. The trajectory does not depend on the number of devices, of those that JAX
     has. A CPU can act as eight: `jax.config.update('jax_num_cpu_devices', 8)`.
  3. A run restored from its middle is bit-identical to an uninterrupted one.
  4. A step changes no structure, shape or dtype of the state.
  5. The ledger can count the communication.

  Args:
    algorithm: the algorithm, such as `pr.k_avg(optax.sgd(0.1), period=4)`.
    oracle: `problem -> x[T + 1, N, d]`, the same algorithm in NumPy, written
      without the library. Default: no oracle, so law 1 is not checked.
    problem: the losses, the noise and the start. Default: `make_problem()`.

  Returns:
    The trajectory, the error and the cost.

  Raises:
    AssertionError: if a law does not hold; the message names it.
    ValueError: if the algorithm does not fit N replicas.

  Example:
    >>> import numpy as np, optax, prsgd_jax as pr
    >>> def oracle(problem):
    ...   x = np.stack([problem.start] * problem.num_replicas)
    ...   record = [x]
    ...   for step in range(problem.num_steps):
    ...     x = x - 0.1 * problem.gradients(x, step)
    ...     if (step + 1) % 4 == 0:
    ...       x = np.stack([x.mean(axis=0)] * len(x))
    ...     record.append(x)
    ...   return np.stack(record)
    >>> report = check_laws(pr.k_avg(optax.sgd(0.1), period=4), oracle)
    >>> report.error < 1e-12, int(report.account.rounds[-1])
    (True, 6)
  """
  problem = make_problem() if problem is None else problem
  n = problem.num_replicas
  layouts = [d for d in range(1, jax.local_device_count() + 1) if n % d == 0]
  with jax.enable_x64(True):
    runs = [_run(algorithm, problem, d) for d in layouts]
    x, error = runs[0].x, 0.0
    if oracle is not None:
      error = _distance(x, oracle(problem), 'the oracle')
    for d, run in zip(layouts[1:], runs[1:]):
      _distance(run.x, x, f'the same algorithm on {d} devices')
    _check_resume(algorithm, problem, runs[-1], layouts[-1])
    shapes = replica_shapes(runs[0].states[0])
    spent = account(algorithm, shapes, n, problem.num_steps)
  return Report(x, error, tuple(layouts), spent)


class _Run(NamedTuple):
  x: np.ndarray
  states: Sequence[Any]  # on the host, before and after each step


def _run(
  algorithm: ReplicaTransformation, problem: Problem, num_devices: int
) -> _Run:
  trainer = _trainer(algorithm, problem, num_devices)
  start = trainer.init(problem.start)
  states = [_to_host(start)]
  states += _states(trainer, problem, start, problem.num_steps)
  for step, after in enumerate(states[1:], 1):
    if _types(after) != _types(states[0]):
      raise AssertionError(
        f'step {step} changed the structure, a shape or a dtype of the state'
      )
  n = problem.num_replicas
  return _Run(np.stack([s.params.reshape((n, -1)) for s in states]), states)


def _trainer(
  algorithm: ReplicaTransformation, problem: Problem, num_devices: int
) -> Trainer:
  return trainer(
    algorithm,
    _loss,
    num_replicas=problem.num_replicas,
    num_devices=num_devices,
    devices=jax.local_devices(),  # because each process checks for itself
  )


def _states(
  trainer: Trainer, problem: Problem, state: State, num_steps: int
) -> Iterator[TrainState]:
  """Yield the state after each step, on the host."""
  for _ in range(num_steps):
    arrays = (problem.curvature, problem.target, problem.noise)
    state, _ = trainer.run(state, drawn(arrays, _batch), 1)
    yield _to_host(state)


def _batch(data: Any, step: Array, replica: Array, key: Array) -> Any:
  del key
  curvature, target, noise = data
  return curvature[replica], target[replica], noise[step, replica]


def _loss(
  x: Array, model_state: ArrayTree, batch: Any, key: Array
) -> tuple[Array, tuple[ArrayTree, dict]]:
  del key
  curvature, target, noise = batch
  loss = curvature @ jnp.square(x - target) / 2
  return loss + jnp.log(jnp.cosh(x)).sum() + noise @ x, (model_state, {})


def _check_resume(
  algorithm: ReplicaTransformation,
  problem: Problem,
  whole: _Run,
  num_devices: int,
) -> None:
  trainer = _trainer(algorithm, problem, num_devices)
  # One step before the half, because that lies inside most periods.
  middle = max(problem.num_steps // 2 - 1, 0)
  fresh = trainer.init(problem.start)
  placed = trainer.mesh.place_per_device(whole.states[middle])
  state = fresh.replace(on_devices=from_data(placed, fresh.on_devices))
  *_, last = _states(trainer, problem, state, problem.num_steps - middle)
  one, other = (jax.tree.leaves(s) for s in (last, whole.states[-1]))
  if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other)):
    raise AssertionError(
      f'a run resumed after {middle} steps differs from the uninterrupted run; '
      'keep all memory of a stage in its state or in registers'
    )


def _distance(x: np.ndarray, wanted: np.ndarray, what: str) -> float:
  """Return the largest |x - wanted| over all steps."""
  wanted = np.asarray(wanted)
  if wanted.shape != x.shape:
    raise AssertionError(
      f'{what} must return x[T + 1, N, d] = {x.shape}, got {wanted.shape}'
    )
  apart = np.abs(x - wanted).max(axis=(1, 2))
  wrong = ~(apart <= TOLERANCE)  # negated, so that NaN counts as wrong
  if wrong.any():
    step = int(wrong.argmax())
    raise AssertionError(
      f'x is {apart[step]:.3g} away from {what} after {step} steps, the first '
      f'step at which the distance exceeds {TOLERANCE}'
    )
  return float(apart.max())


def _to_host(state: State) -> TrainState:
  """Return the state as NumPy arrays, with keys as their data."""
  return jax.tree.map(np.array, to_data(state.on_devices))


def _types(state: TrainState) -> tuple:
  leaves, treedef = jax.tree.flatten(state)
  return treedef, [(x.shape, x.dtype) for x in leaves]
