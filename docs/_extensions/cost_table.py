"""The table of what algorithms cost, from the chains and the ledger.

It is computed each time the pages are built, because copied numbers go stale.
"""

import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sphinx.application import Sphinx

import prsgd_jax as pr

N = 8
NUM_STEPS = 320  # a multiple of all periods below
SIDE = 1000  # the model is one matrix of a million parameters
NETWORK = pr.ledger.Network(
  links={
    'global': pr.ledger.Link(latency=1e-4, bandwidth=1.25e8),
    'group': pr.ledger.Link(latency=5e-6, bandwidth=5e10),
    'neighbor': pr.ledger.Link(latency=1e-4, bandwidth=1.25e8),
  },
  step_time=10e-3,
)
TX = optax.sgd(0.1, momentum=0.9)
RING = pr.graphs.ring()
ROWS = {
  'ssgd': pr.ssgd(TX),
  'pr_sgd, period=4': pr.pr_sgd(TX, period=4),
  'pr_sgd, period=16': pr.pr_sgd(TX, period=16),
  'slowmo, period=16': pr.slowmo(
    TX, learning_rate=0.1, period=16, slow_momentum=0.5
  ),
  'diloco, period=16': pr.diloco(TX, period=16),
  'sparse_loco, period=16': pr.sparse_loco(TX, period=16),
  'scaffold, period=16': pr.scaffold(TX, learning_rate=0.1, period=16),
  'easgd, period=16': pr.easgd(TX, period=16, alpha=0.1),
  'hier_avg, local_period=2, global_period=16, group_size=4': pr.hier_avg(
    TX, local_period=2, global_period=16, group_size=4
  ),
  'd_psgd, ring': pr.d_psgd(TX, mixing=RING),
  'diffusion, one-peer exponential': pr.diffusion(
    TX, mixing=pr.graphs.one_peer_exponential()
  ),
  'gradient_tracking, ring': pr.gradient_tracking(TX, mixing=RING),
  'choco_sgd, ring, top 10 %': pr.choco_sgd(
    TX,
    mixing=RING,
    compressor=pr.codecs.top_k(0.1),
    consensus_step_size=0.2,
  ),
  'power_sgd, rank=4': pr.power_sgd(TX, rank=4),
}


def cells(label: str, algorithm: pr.base.ReplicaTransformation) -> list[str]:
  """Return the cells of an algorithm."""
  shapes, state = _shapes(algorithm)
  spent = pr.ledger.account(algorithm, shapes, N, NUM_STEPS, NETWORK)
  model = _size(shapes.params)
  inside = spent.bytes_by_tier.get('group', np.zeros(1))[-1]
  between = spent.bytes_sent[-1] - inside
  return [
    label,
    f'{spent.rounds[-1] / NUM_STEPS:.3g}',
    f'{between / NUM_STEPS / model:.3g}',
    f'{inside / NUM_STEPS / model:.3g}',
    f'{(_size((shapes, state)) - _size(shapes.grads)) / model:.1f}',
    f'{1e3 * spent.seconds[-1] / NUM_STEPS:.1f}',
  ]


def _shapes(
  algorithm: pr.base.ReplicaTransformation,
) -> tuple[pr.base.Replica, Any]:
  """The shapes of one replica and of its stages, between two steps."""
  weights = jax.ShapeDtypeStruct((1, SIDE, SIDE), jnp.float32)
  replica, state = jax.eval_shape(
    lambda x: algorithm.init(pr.base.Replica(params=x), N), weights
  )
  replica = pr.base.lasting(algorithm, replica)

  def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

  replica, state = jax.tree.map(one, (replica, state))
  return replica._replace(grads=replica.params), state


def _size(tree: Any) -> int:
  return sum(
    int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


def table() -> str:
  """Return the table in Markdown."""
  head = [
    'algorithm',
    'rounds a step',
    'models sent a step',
    'inside a group',
    'copies held',
    'time of a step, ms',
  ]
  rows = [head, ['---', *['---:'] * 5], *itertools.starmap(cells, ROWS.items())]
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def setup(app: Sphinx) -> dict[str, Any]:
  """Write the table at once: Sphinx has not read its sources yet."""
  path = pathlib.Path(app.srcdir) / '_generated' / 'costs.md'
  path.parent.mkdir(exist_ok=True)
  made = table()
  if not path.exists() or path.read_text() != made:
    path.write_text(made)
  return {'version': '1', 'parallel_read_safe': True}
