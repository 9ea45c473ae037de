"""Streaming DiLoCo: fragments of the model in turn, applied later."""

from collections.abc import Callable, Iterable, Sequence
import itertools

import jax
import optax

from prsgd_jax.algorithms.diloco import DILOCO_OUTER
from prsgd_jax.base import (
  ArrayTree,
  Replica,
  ReplicaTransformation,
  Schedule,
  chain,
)
from prsgd_jax.checks import (
  MAX_STEPS,
  check_number,
  check_optax,
  check_positive_int,
  check_step,
)
from prsgd_jax.mixing.codecs import Codec, Compressor
from prsgd_jax.mixing.mixings import mean
from prsgd_jax.names import FIELDS
from prsgd_jax.schedules import at_steps
from prsgd_jax.stages import (
  algorithm,
  at,
  let,
  outer_update,
  remember,
  step,
  sync,
  zeros,
)
from prsgd_jax.stages.scopes import viewed

# Each is a stage of its own.
MAX_FRAGMENTS = 2**10


def streaming_diloco(
  local: optax.GradientTransformation | ReplicaTransformation,
  *,
  period: int,
  fragments: int | Sequence[Sequence[str]],
  delay: int,
  alpha: float,
  outer: optax.GradientTransformation | None = None,
  codec: Compressor | Codec | None = None,
) -> ReplicaTransformation:
  """Streaming DiLoCo: fragments in turn, on their way while training continues.

  Fragment p = 1 .. P of the parameters is sent at the steps t with t =
  floor(p H / P) mod H, as x0 - x_i. At t + tau, with x0 its last agreed
  parameters, x0 <- x0 + outer(mean_j (x0 - x_j^t));
  x_i <- alpha x_i + (1 - alpha) x0.

  One fragment, tau = 0 and alpha = 0 is `diloco`. A layer is an entry at the
  top of the tree of parameters. A number of fragments deals the layers out in
  turn, like cards ("strided").

  Args:
    local: optimizer of every replica, whose buffers stay local, or a chain that
      is the local step.
    period: H, steps between two averages of the same fragment.
    fragments: P, at most H and at most the number of layers; or the names of
      the layers of each fragment, every layer in exactly one.
    delay: tau, steps that a mean is on its way, less than H.
    alpha: the part that the local parameters keep, in [0, 1).
    outer: optax transformation of the pseudo-gradient, one for each fragment.
      Default: that of `diloco`. Its schedules count rounds of the fragment.
    codec: compressor or codec of the differences. Default: none. The paper's is
      `e3m0()`, four bits a number; sums are taken in float32.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the layers do
      not make the fragments.

  Reference:
    Douillard et al. 2025, Streaming DiLoCo with overlapping communication
    (arXiv 2501.18512), Algorithm 2. The equations are recalled and agree with
    the implementation in torchft (`local_sgd.py`), whose offsets and start are
    taken, except that torchft has alpha = 0 only; the paper's text and its
    numbers for alpha and tau are not verified.
  """
  outer = DILOCO_OUTER if outer is None else outer
  check_optax('outer', outer)
  period = check_positive_int('period', period)
  selected = _fragments(fragments, period)
  if check_step('delay', delay) >= period:
    raise ValueError(f'delay must be less than period = {period}, got {delay}')
  alpha = check_number('alpha', alpha, lambda x: 0 <= x < 1, 'in [0, 1)')

  def fragment(p: int) -> ReplicaTransformation:
    offset = (p + 1) * period // len(selected)
    return _on_leaves(
      selected[p],
      at(
        _after(offset, period),
        let(delta=lambda x0, params: x0 - params),
        sync(mean(), 'delta', codec=codec),
      ),
      at(
        _after(offset, period, delay),
        outer_update(outer, of='delta', at='x0'),
        let(params=lambda params, x0: alpha * params + (1 - alpha) * x0),
      ),
    )

  return algorithm(
    'streaming_diloco',
    remember(x0='params', delta=zeros),
    step(local),
    *map(fragment, range(len(selected))),
  )


Select = Callable[[ArrayTree], list[int]]


def _on_leaves(
  select: Callable[[ArrayTree], Iterable[int]], *stages: ReplicaTransformation
) -> ReplicaTransformation:
  """Runs the stages on some leaves of the parameters, and of all like them.

  Inside, a register with the structure of `params` is the list of its selected
  leaves. What the stages declare has the structure of that list.

  Args:
    select: `params -> positions` among the leaves of the tree.
    *stages: in order.
  """
  inner = chain(*stages)
  found = inner.names

  def enter(replica: Replica) -> Replica:
    treedef = jax.tree.structure(replica.params)
    chosen = list(select(replica.params))

    def part(tree: ArrayTree) -> ArrayTree:
      if jax.tree.structure(tree) != treedef:  # type: ignore[operator]
        return tree
      leaves = jax.tree.leaves(tree)
      return [leaves[i] for i in chosen]

    held = [n for n in (*FIELDS, *replica.registers) if replica.has(n)]
    return replica.set({n: part(replica.get(n)) for n in held})

  def leave(inside: Replica, replica: Replica) -> Replica:
    treedef = jax.tree.structure(replica.params)
    chosen = list(select(replica.params))

    def whole(name: str) -> ArrayTree:
      new = inside.get(name)
      if not replica.has(name):
        return new
      leaves, structure = jax.tree.flatten(replica.get(name))
      if structure != treedef:  # type: ignore[operator]
        return new
      for i, leaf in zip(chosen, new, strict=True):
        leaves[i] = leaf
      return jax.tree.unflatten(treedef, leaves)

    kept = [n for n in found.writes if replica.has(n)] + sorted(found.declares)
    return replica.set({n: whole(n) for n in kept if inside.has(n)})

  return viewed(inner, enter, leave, found._replace(assigns=frozenset()))


def _after(offset: int, period: int, delay: int = 0) -> Schedule:
  """`delay` steps after each t = offset mod H, not before the first of them."""
  if period > MAX_STEPS:  # once in a run at most
    return at_steps([offset + delay - 1])
  phase = (delay + offset) % period
  return lambda step: (step >= delay) & ((step + 1 - phase) % period == 0)


def _fragments(
  fragments: int | Sequence[Sequence[str]], period: int
) -> list[Select]:
  """For each fragment `params -> positions of its leaves`."""
  if isinstance(fragments, str) or not isinstance(fragments, Sequence):
    count = check_positive_int('fragments', fragments)
    _check_count(count, period)
    return [_every_layer(p, count) for p in range(count)]
  named = [
    (layers,) if isinstance(layers, str) else tuple(layers)
    for layers in fragments
  ]
  if not named or not all(named):
    raise ValueError(
      "fragments expects names of layers for each, such as [['embed'], "
      f"['head']], got {fragments!r}"
    )
  _check_count(len(named), period)
  return [_layers_of(p, named) for p in range(len(named))]


def _check_count(count: int, period: int) -> None:
  most = min(period, MAX_FRAGMENTS)
  if count > most:
    raise ValueError(
      f'fragments must be at most period = {period}, and at most '
      f'{MAX_FRAGMENTS}, got {count}'
    )


def _layers(params: ArrayTree) -> dict[str, list[int]]:
  """Name -> positions of the leaves, of the entries at the top of a tree."""
  layers: dict[str, list[int]] = {}
  for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
    name = jax.tree_util.keystr(path[:1], simple=True)
    layers.setdefault(name, []).append(i)
  return layers


def _every_layer(first: int, stride: int) -> Select:
  """Layers first, first + stride, ..."""

  def select(params: ArrayTree) -> list[int]:
    layers = list(_layers(params).values())
    if len(layers) < stride:
      raise ValueError(
        f'fragments must be at most the number of layers, {len(layers)} '
        f'entries at the top of the parameters, got {stride}'
      )
    return list(itertools.chain(*layers[first::stride]))

  return select


def _layers_of(index: int, named: Sequence[Sequence[str]]) -> Select:
  """Layers of one of the fragments that are given by name."""

  def select(params: ArrayTree) -> list[int]:
    layers = _layers(params)
    given = sorted(itertools.chain(*named))
    if given != sorted(layers):
      raise ValueError(
        f'fragments must name each of the layers {sorted(layers)} once, got '
        f'{given}'
      )
    return list(itertools.chain(*(layers[name] for name in named[index])))

  return select
