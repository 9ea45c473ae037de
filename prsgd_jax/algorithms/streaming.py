"""Streaming DiLoCo: fragments of the model are sent in turn, applied later."""

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

# Limited, because each fragment is compiled as a separate stage.
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
  """Streaming DiLoCo: fragments are sent in turn while training continues.

  Fragment p = 1 .. P of the parameters is sent at steps t = floor(p H / P) mod
  H, as x0 - x_i, where x0 are its last common parameters. At t + tau,
  x0 <- x0 + outer(mean_j (x0 - x_j^t));  x_i <- alpha x_i + (1 - alpha) x0.

  With one fragment, tau = 0 and alpha = 0 it is `diloco`. A layer is a
  top-level entry of the tree of parameters. With P fragments, fragment p has
  every P-th layer ("strided").

  Args:
    local: an optimizer for every replica, whose buffers stay local, or a stage
      that takes its local step.
    period: H, steps between two averages of one fragment, >= 1.
    fragments: P, at most H and at most the number of layers; or a list of the
      layer names of each fragment, with every layer in exactly one.
    delay: tau, steps from sending to applying, in 0 .. H - 1.
    alpha: the weight of the local parameters, in [0, 1).
    outer: an optax transformation of the pseudo-gradient, applied to each
      fragment. Default: Nesterov SGD with learning rate 0.7 and momentum 0.9.
      Its schedules count rounds of the fragment.
    codec: a compressor or codec of the differences. The paper uses `e3m0()`,
      four bits per number, summed in float32. Default: none.

  Raises:
    ValueError: if an argument is out of range; from `init`, if the fragments do
      not match the layers.

  Example:
    >>> import optax, prsgd_jax as pr
    >>> algorithm = streaming_diloco(
    ...     optax.adamw(1e-3), period=50, fragments=4, delay=5, alpha=0.5,
    ...     codec=pr.codecs.e3m0())

  Reference:
    Douillard et al. 2025, Streaming DiLoCo with overlapping communication
    (arXiv 2501.18512), Algorithm 2. The equations were written from memory.
    They agree with torchft (`local_sgd.py`), whose offsets and start are used,
    except that torchft supports only alpha = 0. Not verified: the paper's text,
    and its numbers for alpha and tau.
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
  """Run the stages on selected leaves of all registers shaped like `params`.

  Inside, a register with the structure of `params` is the list of its selected
  leaves. Registers that the stages declare have the structure of that list.

  Args:
    select: `params -> positions` of the leaves in the flattened tree.
    *stages: the stages, in order.
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
  """Return the schedule `delay` steps after each t = offset mod H, t > 0."""
  if period > MAX_STEPS:  # at most once in a run
    return at_steps([offset + delay - 1])
  phase = (delay + offset) % period
  return lambda step: (step >= delay) & ((step + 1 - phase) % period == 0)


def _fragments(
  fragments: int | Sequence[Sequence[str]], period: int
) -> list[Select]:
  """Return, for each fragment, `params -> positions of its leaves`."""
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
      "fragments expects a number or lists of layer names such as [['embed'], "
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
  """Return name -> positions of the leaves, for the top-level entries."""
  layers: dict[str, list[int]] = {}
  for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
    name = jax.tree_util.keystr(path[:1], simple=True)
    layers.setdefault(name, []).append(i)
  return layers


def _every_layer(first: int, stride: int) -> Select:
  """Select the layers first, first + stride, ..."""

  def select(params: ArrayTree) -> list[int]:
    layers = list(_layers(params).values())
    if len(layers) < stride:
      raise ValueError(
        f'fragments must be at most the number of layers, {len(layers)} '
        f'top-level entries of the parameters, got {stride}'
      )
    return list(itertools.chain(*layers[first::stride]))

  return select


def _layers_of(index: int, named: Sequence[Sequence[str]]) -> Select:
  """Select the layers of one fragment, given by name."""

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
