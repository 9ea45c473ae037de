"""Save figures to files, with a digest of the content in PNG files.

A test compares the digest of a saved figure with the figure that the code
draws. The digest covers words, styles and data, not pixels, because pixels
depend on the fonts of a machine and on the release of matplotlib.
"""

import hashlib
import json
import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
import numpy as np
from PIL import Image

from experiments.running.records import writing
from experiments.tools import drawing
from prsgd_jax import system_errors

DPI = 110


def content(figure: Figure) -> list[dict[str, Any]]:
  """Return the words, scales, styles and data of a figure, panel by panel.

  The data have four digits, so that they are equal on all machines.
  """
  return [_panel(axis) for axis in figure.axes]


def _panel(axis: Axes) -> dict[str, Any]:
  legends = [*axis.figure.legends, axis.get_legend()]
  bands = [c for c in axis.collections if isinstance(c, PolyCollection)]
  return {
    'words': [
      axis.get_title(),
      axis.get_xlabel(),
      axis.get_ylabel(),
      *(text.get_text() for text in axis.texts),
      *(text.get_text() for each in legends if each for text in each.texts),
    ],
    'scales': [axis.get_xscale(), axis.get_yscale()],
    'lines': [
      {
        'style': [line.get_color(), line.get_marker(), line.get_linestyle()],
        'data': [_rounded(line.get_xdata()), _rounded(line.get_ydata())],
      }
      for line in axis.lines
    ],
    'bands': [
      [_rounded(side) for side in np.transpose(np.asarray(path.vertices))]
      for band in bands
      for path in band.get_paths()
    ],
  }


def _rounded(values: Any) -> list[str]:
  return [f'{v:.4g}' for v in np.asarray(values, float)]


def digest(figure: Figure) -> str:
  """Return a digest of the content of a figure, stored in PNG as `Content`."""
  text = json.dumps(content(figure), default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_digest(path: pathlib.Path) -> str | None:
  """Return the digest in a PNG file, None if it has none."""
  with Image.open(path) as picture:
    return picture.info.get('Content')


def save(figure: Figure, path: pathlib.Path, *, dpi: int = DPI) -> None:
  """Write a figure to a file, in the format of the file's extension.

  Args:
    figure: figure to write.
    path: file to write; its directory is created if it is missing.
    dpi: pixels per inch of a PNG file.

  Raises:
    ValueError: if the format is unknown or the file cannot be written.
  """
  png = path.suffix.lower() in ('.png', '')
  metadata = {'Content': digest(figure)} if png else None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with drawing.look(), writing.whole(path) as staging:
      kind = path.suffix[1:] or 'png'
      figure.savefig(staging, dpi=dpi, metadata=metadata, format=kind)
  except OSError as error:
    why = system_errors.reason(error)
    raise ValueError(
      f'{path} cannot be written ({why}); pass another --output'
    ) from error
