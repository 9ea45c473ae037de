"""CONDITIONAL: what stages that do not always run must leave as it was."""

from typing import Any

import jax

from prsgd_jax.base import ArrayTree


def check_kept(
  stage: str,
  before: tuple[dict[str, ArrayTree], ArrayTree],
  after: tuple[dict[str, ArrayTree], ArrayTree],
) -> None:
  """Checks, while tracing, that conditional stages change no types.

  Args:
    stage: the combinator, for the message.
    before: (registers by name, private state).
    after: the same two after the stages.

  Raises:
    ValueError: if a structure, shape or dtype changed.
  """
  for (name, old), new in zip(
    [*before[0].items(), ('its private state', before[1])],
    [*after[0].values(), after[1]],
  ):
    if _types(old) != _types(new):
      raise ValueError(
        f'{stage}(...): its stages change the structure or a type of {name}, '
        f'from {_types(old)[1]} to {_types(new)[1]}; new entries of metrics '
        'must be added outside'
      )


def _types(tree: ArrayTree) -> tuple[Any, list[str]]:
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, [f'{x.dtype}{list(x.shape[1:])}' for x in leaves]
