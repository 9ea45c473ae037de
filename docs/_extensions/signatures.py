"""Signatures as the source has them.

Evaluated annotations and defaults are long: an alias such as `Schedule` becomes
the type of a function, and a default stage the addresses of four of them.
"""

import ast
import inspect
import textwrap
from typing import Any

from sphinx.application import Sphinx


def written(thing: Any) -> tuple[str, str | None] | None:
  """Return (parameters, result) as they are written, None if there are none.

  Args:
    thing: a function, a NamedTuple, or a class with an `__init__`.

  Example:
    >>> def add(x: 'Array', *, by: int | float = 1) -> 'Array': ...
    >>> written(add)
    ("(x: 'Array', *, by: int | float=1)", "'Array'")
  """
  try:
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))
  except (OSError, TypeError):
    return None
  node = ast.parse(source).body[0]
  if isinstance(node, ast.FunctionDef):
    result = node.returns and ast.unparse(node.returns)
    return f'({ast.unparse(node.args)})', result
  return _of_class(node, thing) if isinstance(node, ast.ClassDef) else None


def _of_class(node: ast.ClassDef, thing: type) -> tuple[str, None] | None:
  for part in node.body:
    if isinstance(part, ast.FunctionDef) and part.name == '__init__':
      part.args.args = part.args.args[1:]  # without self
      return f'({ast.unparse(part.args)})', None
  fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
  if not fields or not issubclass(thing, tuple):
    return None
  names = [ast.arg(ast.unparse(x.target), x.annotation) for x in fields]
  values = [x.value for x in fields if x.value is not None]
  args = ast.arguments([], names, None, [], [], None, values)
  return f'({ast.unparse(args)})', None


def process(
  app: Sphinx,
  what: str,
  name: str,
  thing: Any,
  options: Any,
  signature: str | None,
  result: str | None,
) -> tuple[str, str | None] | None:
  del app, name, options, signature, result
  return written(thing) if what in ('function', 'class', 'method') else None


def setup(app: Sphinx) -> dict[str, Any]:
  """Replace the signatures that autodoc evaluates."""
  app.connect('autodoc-process-signature', process)
  return {'version': '1', 'parallel_read_safe': True}
