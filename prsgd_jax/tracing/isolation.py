"""Functions of one replica, traced where no axis of replicas is in scope.

Inside the mapped function the axis of devices is bound. A collective over it in
a caller's loss would be no error there: it would join the rows at one place of
the blocks of V replicas, so that the result depended on the devices. Even its
size would be that of the devices. So the functions of callers are traced
outside, where JAX refuses the name, and the mapped function runs what came out.

They cannot be traced before, because only the mapped function knows with what
shapes it calls them. It raises `_Untraced` for a program that is missing;
`completing` makes it and starts again. That costs nothing once all is compiled.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import numpy as np

from prsgd_jax.base import AXIS_NAME

_Programs = dict[Any, Callable[..., Any]]


class _Untraced(Exception):
  """A program is missing: `make` traces it, keeps it, and returns its jaxpr."""

  def __init__(self, make: Callable[[], Any], programs: _Programs):
    super().__init__('call the mapped function by isolation.completing')
    self.make, self.programs = make, programs


def isolated(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `fn` as a function that sees no axis of replicas.

  Args:
    name: what the caller knows the function as, for the error.
    fn: a function of arrays.

  Returns:
    The function, to be called inside of a mapped function that `completing`
    calls.

  Raises:
    ValueError: from the call, if there is a collective over the axis of
      replicas in `fn`.
  """
  programs: _Programs = {}

  def call(*args: Any) -> Any:
    leaves, treedef = jax.tree.flatten(args)
    key = types_of(args)

    def make() -> Any:
      shapes = jax.tree.unflatten(treedef, key[1])
      programs[key], jaxpr = _trace(name, fn, shapes)
      return jaxpr

    if key not in programs:
      raise _Untraced(make, programs)
    return programs[key](leaves)

  return call


def completing(
  mapped: Callable[..., Any],
  functions: int,
  watch: Callable[[Any], None] | None = None,
) -> Callable[..., Any]:
  """Returns the mapped function with its isolated functions traced on demand.

  Their programs are dropped at the end of the call, because the next trace may
  happen under other settings of JAX, such as 64-bit types.

  What is missing is found while tracing for shapes. A real call that raises
  would leave JAX's fast path of dispatching for good (measured: 4.0 ms in place
  of 0.35 ms a dispatch), so there is one only where the types of the first
  argument change from call to call.

  Args:
    mapped: what `ReplicaMesh.map` returned.
    functions: how many isolated functions it calls.
    watch: is given the jaxpr of every isolated function that is traced; what it
      raises ends the call before anything was run.
  """
  known = set()

  def call(first: Any, *rest: Any) -> Any:
    key = _wide(), *map(_signature, jax.tree.leaves(rest))
    made: list[_Programs] = []
    try:
      while True:
        try:
          if key not in known and len(made) < functions:
            jax.eval_shape(lambda x: mapped(x, *rest), first)
          out = mapped(first, *rest)
          known.add(key)
          return out
        except _Untraced as untraced:
          missing = untraced
        made.append(missing.programs)
        jaxpr = missing.make()  # outside of the handler: its errors are its own
        if watch is not None:
          watch(jaxpr)
    finally:
      for programs in made:
        programs.clear()

  return call


def _wide() -> bool:
  return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def _signature(x: Any) -> Any:
  return (x.shape, x.dtype) if hasattr(x, 'shape') else x


def types_of(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...], bool]:
  """Structure and types of a traced tree, and whether floats are of 64 bits."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple(map(_type, leaves)), _wide()


def _type(x: Any) -> jax.ShapeDtypeStruct:
  aval = jax.typeof(x)
  weak = getattr(aval, 'weak_type', False)  # keys have none
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def _trace(
  name: str, fn: Callable[..., Any], shapes: tuple
) -> tuple[Callable[..., Any], Any]:
  """The program of `fn` for arguments of these types, and its jaxpr."""
  try:
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*shapes)
  except NameError as error:
    if 'axis name' not in str(error) or AXIS_NAME not in str(error):
      raise
    raise _refusal(name, f'BatchNorm(axis_name={AXIS_NAME!r})') from error
  treedef = jax.tree.structure(out)
  run = jax.extend.core.jaxpr_as_fun(closed)
  return lambda leaves: jax.tree.unflatten(treedef, run(*leaves)), closed.jaxpr


def over_block_isolated(
  name: str, fn: Callable[..., Any]
) -> Callable[..., Any]:
  """Maps a function of a caller over the block, as `base.over_block` does.

  It is for functions that are too small to be traced outside, such as rules and
  optimizers: their collectives are found in what was traced.

  Args:
    name: what the caller knows the function as, for the error.
    fn: a function of one replica's trees.

  Raises:
    ValueError: from the call, if there is a collective over the axis of
      replicas in `fn`.
  """

  def call(*args: Any) -> Any:
    closed, out = jax.make_jaxpr(jax.vmap(fn), return_shape=True)(*args)
    if _joins_replicas(closed.jaxpr):
      raise _refusal(name, f'lax.pmean(x, {AXIS_NAME!r})')
    run = jax.extend.core.jaxpr_as_fun(closed)
    return jax.tree.unflatten(
      jax.tree.structure(out), run(*jax.tree.leaves(args))
    )

  return call


def _joins_replicas(jaxpr: Any) -> bool:
  for eqn in jaxpr.eqns:
    for parameter in ('axes', 'axis_name'):
      axes = eqn.params.get(parameter)
      if AXIS_NAME in (axes if isinstance(axes, tuple) else (axes,)):
        return True
    if any(map(_joins_replicas, jax.extend.core.jaxprs_in_params(eqn.params))):
      return True
  return False


def _refusal(name: str, example: str) -> ValueError:
  return ValueError(
    f'{name} is of one replica and must have no collective over the axis '
    f'{AXIS_NAME!r}, such as that of {example}; leave it out, and let pr.sync '
    'average over the replicas'
  )
