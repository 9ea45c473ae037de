"""Colors and markers of algorithms, identical in all figures.

Each algorithm has its color and marker in one table, so that these depend
neither on the order nor on the number of curves. Variants of an algorithm in
one figure, such as several periods, are shades of its color in the order of
their values.
"""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any, NamedTuple
import zlib

from matplotlib import colormaps, colors

# By Okabe and Ito, for all kinds of color vision, without their yellow, because
# it is too light for lines on white.
HUES = {
  'black': '#000000',
  'blue': '#0072B2',
  'orange': '#E69F00',
  'green': '#009E73',
  'red': '#D55E00',
  'pink': '#CC79A7',
  'sky': '#56B4E9',
}
# Algorithm -> color and marker. Members of a family share a marker if possible.
# Algorithms that are often compared differ at least in the color.
METHODS = {
  'ssgd': ('black', 'o'),
  'one_shot_averaging': ('green', 's'),
  'pr_sgd': ('blue', 'o'),
  'pr_sgd_time_varying': ('pink', 'o'),
  'pr_sgd_heterogeneous': ('orange', 'o'),
  'k_avg': ('red', 's'),
  'post_local_sgd': ('sky', 's'),
  'dynamic_averaging': ('green', 'o'),
  'hier_avg': ('orange', 'D'),
  'multi_level_avg': ('pink', 'D'),
  'hierarchical_local_sgd': ('green', 'D'),
  'd_psgd': ('red', '^'),
  'diffusion': ('sky', '^'),
  'sgp': ('green', '^'),
  'ad_psgd': ('pink', '^'),
  'sparq_sgd': ('orange', '^'),
  'gradient_tracking': ('blue', 'v'),
  'd2': ('orange', 'v'),
  'extra': ('green', 'v'),
  'k_gt': ('pink', 'v'),
  'qg_dsgdm': ('red', 'v'),
  'relay_sgd': ('blue', '^'),
  'slowmo': ('pink', 'P'),
  'bmuf': ('blue', 'P'),
  'diloco': ('blue', 'D'),
  'muloco': ('red', 'D'),
  'noloco': ('sky', 'D'),
  'des_loc': ('black', 'D'),
  'delayed_diloco': ('green', 'P'),
  'eager_diloco': ('orange', 'P'),
  'delayed_nesterov': ('red', 'P'),
  'edit': ('sky', 'P'),
  'decoupled_diloco': ('black', 'P'),
  'streaming_diloco': ('sky', 'v'),
  'easgd': ('blue', '<'),
  'eamsgd': ('orange', '<'),
  'palsgd': ('pink', '<'),
  'fedavg': ('blue', 's'),
  'fedprox': ('orange', 's'),
  'fednova': ('pink', 's'),
  'qsgd': ('orange', 'X'),
  'terngrad': ('green', 'X'),
  'sign_sgd': ('red', 'X'),
  'error_feedback_sgd': ('pink', 'X'),
  'fedpaq': ('sky', 'X'),
  'qsparse_local_sgd': ('blue', 'X'),
  'choco_sgd': ('black', 'X'),
  'sparse_loco': ('red', '<'),
  'demo': ('green', '<'),
  'sparta': ('sky', '<'),
  'power_sgd': ('black', '<'),
  'dion': ('black', 'v'),
  'scaffold': ('green', 'p'),
  'weighted_averaging': ('blue', 'p'),
  'wp_sgd': ('orange', 'p'),
  'tail_averaging': ('pink', 'p'),
  'natural_gradient_averaging': ('red', 'p'),
}
# Style of an algorithm that is not in the table, such as a user's own.
OWN_COLOR = '#7F7F7F'
OWN_MARKERS = ('h', '>', 'd', '*', '8', 'H')
DASHES = ('-', '--', '-.', ':')
# CIE lightness of the last shade: of dark colors 80, still visible on white; of
# light colors 34, still a color.
LIGHT_END, DARK_END = 80.0, 34.0
# With more variants than this, neighbors also differ in the dashes.
MANY = 8


class Style(NamedTuple):
  """Style of a line, with the argument names of matplotlib's `plot`."""

  color: str
  marker: str
  linestyle: str = '-'


def looks(methods: Mapping[str, str]) -> dict[str, Style]:
  """Return distinct styles for the curves of one figure.

  Args:
    methods: label of a curve -> its algorithm. Several labels of an algorithm
      are its variants, in natural order: 'period=4' before 'period=16'.

  Example:
    >>> styles = looks({'SSGD': 'ssgd', 'I = 4': 'pr_sgd', 'I = 16': 'pr_sgd'})
    >>> styles['SSGD']
    Style(color='#000000', marker='o', linestyle='-')
    >>> lightness(styles['I = 4'].color) < lightness(styles['I = 16'].color)
    True
  """
  by_algorithm: dict[str, list[str]] = {}
  for label in sorted(methods, key=natural):
    by_algorithm.setdefault(methods[label], []).append(label)
  bases = _bases(by_algorithm)
  found: dict[str, Style] = {}
  for algorithm, labels in by_algorithm.items():
    found |= _variants(bases[algorithm], labels)
  return {label: found[label] for label in methods}


def variants(algorithm: str, values: Sequence[Any]) -> dict[Any, Style]:
  """Return the styles of variants of an algorithm, given in rising order.

  Example:
    >>> [s.color for s in variants('pr_sgd', (4, 16, 64)).values()]
    ['#0072B2', '#54A1CB', '#A4CCE3']
  """
  return _variants(method(algorithm), values)


def _variants(base: Style, values: Sequence[Any]) -> dict[Any, Style]:
  found = {}
  for i, shade in enumerate(shades(base.color, len(values))):
    dash = DASHES[i % len(DASHES)] if len(values) > MANY else base.linestyle
    found[values[i]] = base._replace(color=shade, linestyle=dash)
  return found


def method(algorithm: str) -> Style:
  """Return the style of an algorithm that has one variant in a figure.

  Example:
    >>> method('k_avg')
    Style(color='#D55E00', marker='s', linestyle='-')
  """
  return _bases({algorithm})[algorithm]


def _bases(algorithms: Iterable[str]) -> dict[str, Style]:
  """Return styles from the table, or a distinct gray for an unknown name."""
  found: dict[str, Style] = {}
  own = [Style(OWN_COLOR, m, d) for d in DASHES for m in OWN_MARKERS]
  for name in sorted(algorithms):
    if name in METHODS:
      hue, marker = METHODS[name]
      found[name] = Style(HUES[hue], marker)
      continue
    # Not `hash`, because that differs between processes.
    place = zlib.crc32(name.encode()) % len(OWN_MARKERS)
    free = [s for s in own[place:] + own[:place] if s not in found.values()]
    found[name] = free[0] if free else own[place]
  return found


def natural(label: str) -> list[str | float]:
  """Return a sort key that compares the numbers in a text by value.

  Example:
    >>> sorted(['I = 16', 'I = 4', 'I = 1e-3'], key=natural)
    ['I = 1e-3', 'I = 4', 'I = 16']
  """
  parts = re.split(r'(\d+(?:\.\d+)?(?:e[+-]?\d+)?)', label)
  return [float(p) if i % 2 else p for i, p in enumerate(parts)]


def lightness(color: str) -> float:
  """Return the CIE lightness L* of a color, from 0 (black) to 100 (white)."""
  linear = [
    v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
    for v in colors.to_rgb(color)
  ]
  y = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear))
  return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def shades(color: str, count: int) -> list[str]:
  """Return a color and shades of it, at equal steps of lightness.

  Dark colors get lighter, light colors darker. The first shade is the color
  itself, so that an algorithm without variants looks like its first variant.

  Example:
    >>> shades('#0072B2', 2)
    ['#0072B2', '#A4CCE3']
  """
  begin = lightness(color)
  end = LIGHT_END if begin < 56 else DARK_END
  step = (end - begin) / max(1, count - 1)
  return [color, *(_shade(color, begin + i * step) for i in range(1, count))]


def _shade(color: str, wanted: float) -> str:
  """Return the color mixed with black or white to reach a lightness."""
  end = (0.0,) * 3 if lightness(color) > wanted else (1.0,) * 3
  low, high = 0.0, 1.0
  mixed = color
  for _ in range(16):  # a bisection, finer than 8 bits can show
    part = (low + high) / 2
    r, g, b = (
      (1 - part) * c + part * e for c, e in zip(colors.to_rgb(color), end)
    )
    mixed = colors.to_hex((r, g, b))
    closer = (lightness(mixed) < wanted) == (end[0] == 1.0)
    low, high = (part, high) if closer else (low, part)
  return mixed.upper()


def ordinal(values: Iterable[float]) -> dict[float, str]:
  """Return colors for numbers that are not variants; lighter as they grow.

  Example:
    >>> list(ordinal([4, 1]))
    [1, 4]
  """
  ordered = sorted(set(values))
  # The last fifth of the map is too light on white.
  top = 0.8 / max(1, len(ordered) - 1)
  return {
    value: colors.to_hex(colormaps['viridis'](i * top)).upper()
    for i, value in enumerate(ordered)
  }


def categories(names: Sequence[str]) -> dict[str, Style]:
  """Return styles for names without an order, such as graphs."""
  hues = list(HUES.values())[1:]
  markers = 'osD^vP'
  return {
    name: Style(
      hues[i % len(hues)],
      markers[i % len(markers)],
      DASHES[i // len(hues) % len(DASHES)],
    )
    for i, name in enumerate(names)
  }
