"""What the pages take from the rest of the project.

The notebooks are shown with the outputs that are stored in them. They are put
where Sphinx finds them before it reads its sources, and are not kept twice in
the repository.
"""

import pathlib
from typing import Any

from sphinx.application import Sphinx


def copy(docs: pathlib.Path) -> None:
  """Copy the notebooks.

  Args:
    docs: the directory of the pages, inside the project.
  """
  experiments = docs.parent / 'experiments'
  notebooks = docs / 'notebooks'
  notebooks.mkdir(exist_ok=True)
  for path in sorted((experiments / 'notebooks').glob('*.ipynb')):
    _update(notebooks / path.name, path.read_text())


def _update(path: pathlib.Path, text: str) -> None:
  """Write a file if its text differs: else its page is not built again."""
  if not path.exists() or path.read_text() != text:
    path.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
  """Copy at once: Sphinx has not looked for its sources yet."""
  copy(pathlib.Path(app.srcdir))
  return {'version': '1', 'parallel_read_safe': True}
