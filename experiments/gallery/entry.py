"""An entry of the gallery: measured data, a figure and three sentences."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.papers.target import Target


class Entry(NamedTuple):
  """A small experiment with several seeds.

  Attributes:
    target: name, title, `measure` and `draw`. Its outcome has no claims.
    setting: function of the data that describes model, rates and seeds.
    sentences: function of the data, as read from JSON, that returns three
      sentences. Their numbers come from the data, so that they cannot be out of
      date.
  """

  target: Target
  setting: Callable[[Mapping[str, Any]], str]
  sentences: Callable[[Mapping[str, Any]], tuple[str, str, str]]
