"""The pages of the API: one for each namespace, from what is public in it.

They are written into `docs/api` before Sphinx reads its sources, and are not
kept in the repository, because they follow from the package.
"""

import importlib
import inspect
import pathlib
import sys
import types
from typing import Any, NamedTuple

from docstrings import escaped
from sphinx.application import Sphinx

ROOT = 'prsgd_jax'
DIRECTORY = 'api'
# Room of a flat name -> its group on the page of the package.
GROUPS = {
  'engine': 'Training and data',
  'data': 'Training and data',
  'stages': 'The words of an algorithm',
  'base': 'The words of an algorithm',
  'algorithms': 'Algorithms',
}


class Namespace(NamedTuple):
  """A module that users see, and the names that are public in it.

  Attributes:
    name: dotted, from the package on.
    module: the module.
    names: public names that are not modules, sorted.
  """

  name: str
  module: types.ModuleType
  names: tuple[str, ...]


def public(module: types.ModuleType) -> list[str]:
  """Return the names that a module offers: `__all__`, or all that is its own.

  Example:
    >>> import prsgd_jax
    >>> 'pr_sgd' in public(prsgd_jax)
    True
  """
  listed = getattr(module, '__all__', None)
  if listed is not None:
    return sorted(listed)
  return sorted(
    name
    for name, thing in vars(module).items()
    if name[0] != '_' and getattr(thing, '__module__', '') == module.__name__
  )


def namespaces(name: str = ROOT) -> list[Namespace]:
  """Return a namespace and those that are public in it, depth first."""
  module = importlib.import_module(name)
  return _inside(name, module)


def _inside(name: str, module: types.ModuleType) -> list[Namespace]:
  # autodoc imports by the names that users write. The module of `pr.graphs` has
  # another one, because it lies in `mixing`.
  sys.modules.setdefault(name, module)
  things = {n: getattr(module, n) for n in public(module)}
  inner = [n for n, x in things.items() if inspect.ismodule(x)]
  found = [Namespace(name, module, tuple(n for n in things if n not in inner))]
  for n in inner:
    found += _inside(f'{name}.{n}', things[n])
  return found


def pages(found: list[Namespace]) -> dict[str, str]:
  """Return file name -> text in reStructuredText.

  A name that two namespaces offer has its entry in the first; the second
  refers to it.
  """
  made = {'index.rst': _index(found)}
  places: dict[int, Namespace] = {}
  for namespace in found:
    entries, others = [], []
    for name in namespace.names:
      thing, place = getattr(namespace.module, name), namespace
      if callable(thing):  # numbers and strings may be equal by chance
        place = places.setdefault(id(thing), namespace)
      (entries if place is namespace else others).append(f'{place.name}.{name}')
    made[f'{namespace.name}.rst'] = _page(namespace, entries, others)
  return made


def _index(found: list[Namespace]) -> str:
  rows = [
    f'   * - :doc:`{_short(n.name)} <{n.name}>`\n     - {_summary(n.module)}'
    for n in found
  ]
  tree = [f'   {_short(n.name)} <{n.name}>' for n in found]
  return '\n'.join(
    [
      *_title('API'),
      'Everything that is public, by namespace. Here ``pr`` is the package:',
      '``import prsgd_jax as pr``.',
      '',
      '.. list-table::',
      '   :class: summary',
      '',
      *rows,
      '',
      '.. toctree::',
      '   :hidden:',
      '',
      *tree,
      '',
    ]
  )


def _page(namespace: Namespace, entries: list[str], others: list[str]) -> str:
  lines = [
    *_title(_short(namespace.name)),
    f'.. automodule:: {namespace.name}',
    '   :no-members:',
    '',
  ]
  for title, members in _groups(namespace, entries).items():
    if title:
      lines += [title, '-' * len(title), '']
    lines += ['.. list-table::', '   :class: summary', '']
    for entry in members:
      lines.append(f'   * - :obj:`{entry.rpartition(".")[2]} <{entry}>`')
      lines.append(f'     - {_summary(_thing(entry))}')
    lines.append('')
  if others:
    lines += ['Documented elsewhere: ', '']
    lines[-2] += ', '.join(f':obj:`{_short(x)} <{x}>`' for x in others) + '.'
  if len(_groups(namespace, entries)) > 1:
    lines += ['Entries', '-------', '']
  for entry in entries:
    lines += [f'.. {_directive(entry)}:: {entry}', '']
  return '\n'.join(lines)


def _groups(namespace: Namespace, entries: list[str]) -> dict[str, list[str]]:
  """Title -> entries. Only the package has names of several rooms."""
  if namespace.name != ROOT:
    return {'': entries} if entries else {}
  groups: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
  for entry in entries:
    room = _thing(entry).__module__.split('.')[1]
    groups[GROUPS[room]].append(entry)
  return groups


def _thing(entry: str) -> Any:
  module, _, name = entry.rpartition('.')
  return getattr(importlib.import_module(module), name)


def _summary(thing: Any) -> str:
  """The first line of a docstring, as reStructuredText."""
  if not (
    inspect.ismodule(thing)
    or inspect.isroutine(thing)
    or inspect.isclass(thing)
  ):
    return ''  # it has the docstring of its type
  return escaped((inspect.getdoc(thing) or '').split('\n')[0])


def _directive(entry: str) -> str:
  thing = _thing(entry)
  if inspect.isclass(thing):
    return 'autoclass'
  return 'autofunction' if inspect.isroutine(thing) else 'autodata'


def _short(name: str) -> str:
  return 'pr' + name.removeprefix(ROOT)


def _title(text: str) -> list[str]:
  return [text, '=' * len(text), '']


def write(directory: pathlib.Path) -> None:
  """Write the pages that differ, and remove pages of other names."""
  made = pages(namespaces())
  directory.mkdir(exist_ok=True)
  for path in directory.iterdir():
    if path.name not in made:
      path.unlink()
  for name, text in made.items():
    path = directory / name
    if not path.exists() or path.read_text() != text:  # else it is built again
      path.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
  """Write the pages at once: Sphinx has not looked for its sources yet."""
  write(pathlib.Path(app.srcdir) / DIRECTORY)
  return {'version': '1', 'parallel_read_safe': True}
