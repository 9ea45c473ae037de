"""SAMPLING: some of the replicas, drawn anew for every round."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prsgd_jax import collectives
from prsgd_jax.base import (
  Array,
  ArrayTree,
  Context,
  Cost,
  Replica,
  ReplicaTransformation,
  Work,
  chain,
  over_block,
)
from prsgd_jax.checks import check_number, check_positive_int
from prsgd_jax.payload import mix_inexact
from prsgd_jax.transforms.common import (
  at_steps,
  check_silent,
)
from prsgd_jax.transforms.local import update_where


class SampledState(NamedTuple):
  """The round's draw, and the state of the stages.

  Attributes:
    share: float[V], N n_i / sum of n_j over those drawn; 0 for the others.
    inner: of the stages inside.
  """

  share: Array
  inner: ArrayTree


def while_sampled(
  *stages: ReplicaTransformation,
  period: int,
  participation: float = 1.0,
  weights: Sequence[float] | None = None,
  what: Sequence[str] = ('params',),
) -> ReplicaTransformation:
  """Runs the stages on max(round(C N), 1) replicas, drawn for each round.

  The draw is made in the first step of a round, of the randomness that all
  replicas share, and stays for the round. The others keep all they have, as in
  `while_active`, and the metric `active` says so. In the last step of the round
  x_i is multiplied by N n_i / sum of n_j over those drawn, by 0 for the others:
  the plain mean of the `sync` that must follow is the weighted mean of those
  drawn.

  Args:
    *stages: what a replica that is drawn does; they must not communicate.
    period: steps of a round.
    participation: C, the part of the replicas that is drawn.
    weights: n_i, one for each replica, commonly its number of examples; all
      the same if None.
    what: fields of `Replica` that the mean covers.

  Raises:
    ValueError: if a number is not what it should be; from `init`, if there is
      not one weight for each replica, or if a stage communicates.
  """
  period = check_positive_int('period', period)
  fraction = check_number(
    'participation', participation, lambda x: 0 < x <= 1, 'in (0, 1]'
  )
  sizes = None if weights is None else np.array(weights, np.float64)
  if sizes is not None and not (
    sizes.ndim == 1 and np.isfinite(sizes).all() and (sizes > 0).all()
  ):
    raise ValueError(f'weights must be numbers > 0, got {weights!r}')
  fields = (what,) if isinstance(what, str) else tuple(what)
  inner = chain(*stages)

  def num_drawn(num_replicas: int) -> int:
    return max(round(fraction * num_replicas), 1)

  def init(replica: Replica, num_replicas: int) -> tuple[Replica, ArrayTree]:
    if sizes is not None and len(sizes) != num_replicas:
      raise ValueError(
        f'weights must have one number for each of the {num_replicas} '
        f'replicas, got {len(sizes)}'
      )
    check_silent('while_sampled', inner, replica, num_replicas)
    replica, state = inner.init(replica, num_replicas)
    block = jax.tree.leaves(replica.params)[0].shape[:1]
    return replica, SampledState(jnp.zeros(block), state)

  def update(
    replica: Replica, state: ArrayTree, context: Context
  ) -> tuple[Replica, ArrayTree]:
    n = collectives.num_replicas(context.replica)

    def draw(share: Array) -> Array:
      rank = jax.random.permutation(context.shared_key, n)
      size = jnp.ones(n) if sizes is None else jnp.asarray(sizes)
      drawn = jnp.where(rank < num_drawn(n), size, 0)
      return (drawn * (n / drawn.sum()))[context.replica].astype(share.dtype)

    def weigh(trees: ArrayTree) -> ArrayTree:
      scale = over_block(lambda x, share: x * share.astype(x.dtype))
      return mix_inexact(
        lambda leaves: [scale(x, share) for x in leaves], trees
      )

    share = at_steps(
      lambda step: step % period == 0, context.step, draw, state.share
    )
    replica, after = update_where(
      share > 0, inner, replica, state.inner, context
    )
    weighed = at_steps(
      lambda step: (step + 1) % period == 0,
      context.step,
      weigh,
      {name: getattr(replica, name) for name in fields},
    )
    return replica._replace(**weighed), SampledState(share, after)

  def cost(
    shapes: Replica, num_replicas: int, steps: np.ndarray
  ) -> tuple[Cost, ...]:
    # Which replicas work is not known here: as likely a draw stands for it.
    rounds, at = np.unique(steps // period, return_inverse=True)
    ranks = [np.random.default_rng(r).permutation(num_replicas) for r in rounds]
    rank = np.reshape(ranks, (len(rounds), num_replicas))
    worked = (rank < num_drawn(num_replicas))[at]
    return tuple(
      Work(entry.active & worked) if isinstance(entry, Work) else entry
      for entry in inner.cost(shapes, num_replicas, steps)
    )

  def output(replica: Replica, state: ArrayTree) -> Replica:
    return inner.output(replica, state.inner)

  return ReplicaTransformation(update, init, cost, output)
