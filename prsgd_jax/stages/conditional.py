"""CONDITIONAL: checks of stages that do not run at every step or replica.

Such stages must keep structures, shapes and dtypes, because the branch in which
they do not run keeps the old values.
"""

from typing import Any

import jax

from prsgd_jax.base import ArrayTree


def check_kept(
  stage: str,
  before: tuple[dict[str, ArrayTree], ArrayTree],
  after: tuple[dict[str, ArrayTree], ArrayTree],
) -> None:
  """Check, while tracing, that conditional stages change no types.

  Args:
    stage: 'at' or 'where', for the message.
    before: (registers by name, state) before the stages.
    after: (registers by name, state) after the stages.

  Raises:
    ValueError: if a structure, shape or dtype changed.
  """
  for (name, old), new in zip(
    [*before[0].items(), ('its private state', before[1])],
    [*after[0].values(), after[1]],
  ):
    if _types(old) != _types(new):
      raise ValueError(
        f'the stages inside {stage}(...) change the structure or a type of '
        f'{name}, from {_types(old)[1]} to {_types(new)[1]}; keep both, and '
        'add new entries of metrics outside'
      )


def _types(tree: ArrayTree) -> tuple[Any, list[str]]:
  leaves, treedef = jax.tree.flatten(tree)
  return treedef, [f'{x.dtype}{list(x.shape[1:])}' for x in leaves]
