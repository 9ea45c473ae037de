"""Isolation: a caller's function is traced without the axis of replicas.

Inside the mapped function the axis of devices is bound. A collective over it in
a caller's loss would not be an error. It would mix rows of different devices,
so the result would depend on the number of devices. Therefore the functions of
callers are traced outside, where JAX rejects the axis name, and the mapped
function runs the traced programs.

They cannot be traced in advance, because only the mapped function knows the
shapes of the arguments. It raises `_Untraced` if a program is missing;
`completing` then traces the program and starts again. This costs nothing once
everything is compiled.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import numpy as np

from prsgd_jax.base import AXIS_NAME

_Programs = dict[Any, Callable[..., Any]]


class _Untraced(Exception):
  """A missing program: `make` traces it, stores it, and returns its jaxpr."""

  def __init__(self, make: Callable[[], Any], programs: _Programs):
    super().__init__('call the mapped function with isolation.completing')
    self.make, self.programs = make, programs


def isolated(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Return `fn` as a function without access to the axis of replicas.

  Args:
    name: the name of the function, for the error.
    fn: a function of arrays.

  Returns:
    The function. Call it inside a mapped function that `completing` calls.

  Raises:
    ValueError: from the call, if `fn` contains a collective over the axis of
      replicas.
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
  """Return the mapped function with its isolated functions traced on demand.

  Programs are dropped at the end of the call, because the next trace may happen
  under other settings of JAX, such as 64-bit types.

  Missing programs are found while tracing for shapes, because a real call that
  raises would permanently leave JAX's fast dispatch path (measured: 4.0 ms in
  place of 0.35 ms per dispatch). So a real call raises only if the types of the
  first argument change between calls.

  Args:
    mapped: the result of `ReplicaMesh.map`.
    functions: the number of isolated functions that it calls.
    watch: a function that receives the jaxpr of every isolated function when it
      is traced. If it raises, the call ends before anything runs.
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
        jaxpr = missing.make()  # outside the handler, so errors are not chained
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
  """Return the structure and types of a traced tree, and the 64-bit setting."""
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, tuple(map(_type, leaves)), _wide()


def _type(x: Any) -> jax.ShapeDtypeStruct:
  aval = jax.typeof(x)
  weak = getattr(aval, 'weak_type', False)  # keys do not have this attribute
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def traced(name: str, fn: Callable[..., Any], *args: Any) -> Any:
  """Return the jaxpr of a function without access to the axis of replicas.

  Args:
    name: the name of the function, for the error.
    fn: a function of arrays.
    *args: its arguments, or their shapes.

  Raises:
    ValueError: if `fn` contains a collective over the axis of replicas.
  """
  return _trace(name, fn, args)[1]


def _trace(
  name: str, fn: Callable[..., Any], shapes: tuple
) -> tuple[Callable[..., Any], Any]:
  """Return the program of `fn` for these argument types, and its jaxpr."""
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
  """Map a caller's function over the block, as `base.over_block` does.

  Use it for functions that are too small to be traced outside, such as rules
  and optimizers. Their collectives are found in the traced program.

  Args:
    name: the name of the function, for the error.
    fn: a function of one replica's trees.

  Raises:
    ValueError: from the call, if `fn` contains a collective over the axis of
      replicas.
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
    f'{name} is a function of one replica and must not contain a collective '
    f'over the axis {AXIS_NAME!r}, such as {example}; remove it, and let '
    'pr.sync average over the replicas'
  )
