"""Many small runs at once: an algorithm of the library, mapped over settings.

The papers' toy problems need thousands of short runs, which the engine would
start one by one. Here all replicas of a run are one block, and settings and
seeds are mapped over it.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

import prsgd_jax as pr

# loss(params, step, replica, key) -> scalar, of one replica
LossFn = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def simulate(
  make: Callable[[jax.Array], pr.base.ReplicaTransformation],
  settings: Sequence[float],
  seeds: Sequence[int],
  *,
  loss_fn: LossFn,
  start: Any,
  num_replicas: int,
  num_steps: int,
  observe: Callable[[Any], Any],
  every: int = 1,
  per_replica: bool = False,
) -> Any:
  """Runs an algorithm for every setting and seed.

  Args:
    make: the algorithm of a setting, such as a learning rate; of all settings
      it communicates at the same steps.
    settings: K numbers.
    seeds: S seeds of all randomness.
    loss_fn: of one replica; the noise is of `key`, another one in each step.
    start: the point where all replicas begin, a tree; or a function of a key.
    num_replicas: N.
    num_steps: T, a multiple of `every`.
    observe: what to keep of the outputs, a function of leaves `[N, ...]`.
    every: steps between observations, the last of which is kept.
    per_replica: whether `start` is N points, leaves `[N, ...]`.

  Returns:
    What was observed, leaves `[K, S, T / every, ...]`.

  Raises:
    ValueError: if `every` does not divide `num_steps`.
  """
  if num_steps % every:
    raise ValueError(
      f'num_steps must be a multiple of every={every}, got {num_steps}'
    )

  def run(setting: jax.Array, seed: jax.Array) -> Any:
    root = jax.random.key(seed, impl='threefry2x32')
    algorithm = make(setting)
    point = (
      start(jax.random.fold_in(root, num_steps)) if callable(start) else (start)
    )
    block = (
      point
      if per_replica
      else jax.tree.map(
        lambda x: jnp.broadcast_to(x, (num_replicas, *jnp.shape(x))) * 1, point
      )
    )
    replica, state = algorithm.init(pr.base.Replica(params=block), num_replicas)
    lasting = algorithm.names.declares if algorithm.names else ()

    def kept(replica: pr.base.Replica) -> pr.base.Replica:
      """What lasts longer than a step."""
      registers = {n: x for n, x in replica.registers.items() if n in lasting}
      return replica._replace(grads=(), metrics=(), registers=registers)

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
      context = _context(loss_fn, num_replicas, root, t)
      replica, state = carry
      replica, state = algorithm.update(replica, state, context)
      return (kept(replica), state), None

    def stretch(carry: Any, first: jax.Array) -> tuple[Any, Any]:
      carry, _ = lax.scan(step, carry, first + jnp.arange(every))
      return carry, observe(algorithm.output(*carry).params)

    firsts = jnp.arange(0, num_steps, every)
    return lax.scan(stretch, (kept(replica), state), firsts)[1]

  over_seeds = jax.vmap(run, in_axes=(None, 0))
  over_all = jax.vmap(over_seeds, in_axes=(0, None))
  # One device, on which the block is whole.
  alone: Callable[..., Any] = jax.vmap(
    over_all, in_axes=None, axis_name=pr.base.AXIS_NAME, axis_size=1
  )
  compiled = jax.jit(alone, compiler_options=_compiler_options())
  out = compiled(jnp.asarray(settings, float), jnp.asarray(seeds))
  return jax.tree.map(lambda x: jax.device_get(x)[0], out)


def _compiler_options() -> dict[str, str] | None:
  """From 0.10.2 on, jaxlib's sums of products may be wrong on a CPU.

  Here runs of several seeds took all their gradients at the start. It is what
  is handed to YNNPACK (jax-ml/jax, issue 39103), so nothing is.
  """
  if jax.default_backend() == 'cpu' and jax.__version_info__ >= (0, 10, 2):
    return {'xla_cpu_experimental_ynn_fusion_type': ''}
  return None


def _context(
  loss_fn: LossFn, num_replicas: int, root: jax.Array, step: jax.Array
) -> pr.base.Context:
  """What the engine would tell the stages of this step."""
  key = jax.random.fold_in(root, step)
  shared_key, own = jax.random.split(key)
  index = jnp.arange(num_replicas)
  keys = jax.vmap(functools.partial(jax.random.fold_in, own))(index)
  pairs = jax.vmap(jax.random.split)(keys)

  def value_and_grad(params: Any, model_state: Any) -> Any:
    def loss(params: Any, replica: jax.Array, key: jax.Array) -> Any:
      return loss_fn(params, step, replica, key)

    values, grads = jax.vmap(jax.value_and_grad(loss))(
      params, index, pairs[:, 0]
    )
    return (values, (model_state, {})), grads

  return pr.base.Context(step, index, pairs[:, 1], shared_key, value_and_grad)
