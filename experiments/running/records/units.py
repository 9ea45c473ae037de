"""Format numbers for people: bytes, fractions, seconds."""

import math

_BYTES = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
# Unit -> its seconds, from the longest.
_TIMES = {
  'd': 86400.0, 'h': 3600.0, 'min': 60.0, 's': 1.0, 'ms': 1e-3, 'µs': 1e-6,
}  # fmt: skip


def size(count: float) -> str:
  """Format a number of bytes; infinity and NaN stay as they are.

  Example:
    >>> size(1536)
    '1.5 KiB'
  """
  if not math.isfinite(count):
    return str(count)
  if count < 1:
    return '0 B'
  power = min(int(math.log(count, 1024)), len(_BYTES) - 1)
  return f'{count / 1024**power:.1f} {_BYTES[power]}'


def percent(fraction: float) -> str:
  """Format a fraction, such as an accuracy.

  Example:
    >>> percent(0.97222)
    '97.22%'
  """
  return f'{fraction:.2%}'


def duration(seconds: float) -> str:
  """Format a time in the largest unit of which it has one.

  Example:
    >>> [duration(s) for s in (0.0123, 12.34, 5400)]
    ['12.3 ms', '12.3 s', '1.5 h']
  """
  if not math.isfinite(seconds):
    return str(seconds)
  if seconds == 0:
    return '0 s'
  fitting = [unit for unit, length in _TIMES.items() if seconds >= length]
  unit = fitting[0] if fitting else 'µs'
  value = seconds / _TIMES[unit]
  return f'{value:.1f} {unit}' if value < 1e6 else f'{value:.3g} {unit}'


def number(value: float) -> str:
  """Format a number: integers with all digits, fractions with four.

  Example:
    >>> number(0.123456), number(12345)
    ('0.1235', '12345')
  """
  return str(value) if isinstance(value, int) else f'{value:.4g}'
