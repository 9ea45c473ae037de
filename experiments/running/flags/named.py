"""Build objects from the text of a flag: a name, and numbers after colons.

`erdos_renyi:0.5` is a mixing, `feedback:top_k:0.1` a codec, `doubling:4` a
schedule, `sgp:ring` a local step.
"""

from collections.abc import Callable, Mapping, Sequence
import inspect
import re
from typing import Any, NamedTuple

import optax

import prsgd_jax as pr
from prsgd_jax.base import Schedule
from prsgd_jax.mixing import codecs


class Run(NamedTuple):
  """Values that a schedule may depend on besides the numbers of its flag.

  Attributes:
    num_steps: length of the run in steps.
    learning_rate: learning rate as a function of the step.
    warmup_steps: number of steps in which the learning rate rises.
    seed: seed of the run.
  """

  num_steps: int
  learning_rate: optax.Schedule
  warmup_steps: int = 0
  seed: int = 0


def whole(number: Any) -> Any:
  """Return a whole number as an int; the library refuses any other."""
  is_whole = isinstance(number, float) and number.is_integer()
  return int(number) if is_whole else number


def _qsr(run: Run, alpha: float, base_period: float) -> Schedule:
  return pr.schedules.qsr(
    run.learning_rate,
    alpha=alpha,
    base_period=whole(base_period),
    num_steps=run.num_steps,
    warmup_steps=run.warmup_steps,
  )


MIXINGS: dict[str, Callable[..., pr.mixing.Mixing]] = {
  'ring': pr.graphs.ring,
  'torus': lambda num_rows=None: pr.graphs.torus(whole(num_rows)),
  'exponential': pr.graphs.exponential,
  'hypercube': pr.graphs.hypercube,
  'star': pr.graphs.star,
  'complete': pr.graphs.complete,
  'erdos_renyi': lambda p, seed=0: pr.graphs.erdos_renyi(p, seed=whole(seed)),
  'one_peer_exponential': pr.graphs.one_peer_exponential,
  'base_graph': lambda max_degree=1: pr.graphs.base_graph(whole(max_degree)),
  'random_matching': pr.graphs.random_matching,
  'random_neighbor': pr.graphs.random_neighbor,
  'independent_neighbors': pr.graphs.independent_neighbors,
  'group_mean': lambda group_size: pr.mixing.group_mean(whole(group_size)),
  'mean': pr.mixing.mean,
}
COMPRESSORS: dict[str, Callable[..., codecs.Compressor]] = {
  'uncompressed': codecs.uncompressed,
  'stochastic_levels': lambda levels: codecs.stochastic_levels(whole(levels)),
  'ternary': codecs.ternary,
  'signs': codecs.signs,
  'top_k': lambda fraction, *, values=None: codecs.top_k(fraction, values),
  'chunked_top_k': lambda num_kept=64, chunk=64, *, values=None: (
    codecs.chunked_top_k(whole(num_kept), chunk=whole(chunk), values=values)
  ),
  'random_k': codecs.random_k,
  'small_float': lambda exponent_bits, mantissa_bits: codecs.small_float(
    whole(exponent_bits), whole(mantissa_bits)
  ),
  'e3m0': codecs.e3m0,
  'bin_means': lambda bins=4, sigmas=6.0: codecs.bin_means(
    whole(bins), sigmas=sigmas
  ),
}
# Compressors that keep values, which a second compressor may code.
OF_VALUES = ('top_k', 'chunked_top_k')
# Robust averages: functions of the registers to average, then of the numbers.
ROBUST: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'finite': pr.stages.average_finite,
  'median': pr.stages.average_median,
  'trimmed': lambda what, trim: pr.stages.average_trimmed(whole(trim), what),
  'geometric_median': pr.stages.average_geometric_median,
  'krum': lambda what, faulty, selected=1: pr.stages.average_krum(
    whole(faulty), what, selected=whole(selected)
  ),
}
# Codecs of a compressor, whose name follows their numbers.
CODECS: dict[str, Callable[..., pr.codecs.Codec]] = {
  'feedback': pr.codecs.feedback,
  'difference': pr.codecs.difference,
  'among_senders': pr.codecs.among_senders,
  'frequencies': lambda codec, chunk=64: pr.codecs.frequencies(
    codec, chunk=whole(chunk)
  ),
}
# Codecs whose inner codec may have a memory.
OF_CODECS = ('among_senders', 'frequencies')
OUTER: dict[str, Callable[..., optax.GradientTransformation]] = {
  'sgd': lambda rate=1.0, momentum=0.0: optax.sgd(rate, momentum or None),
  'nesterov': lambda rate=0.7, momentum=0.9: optax.sgd(
    rate, momentum, nesterov=True
  ),
  'adam': lambda rate=1e-2: optax.adam(rate, b2=0.99, eps=1e-3),
  'yogi': lambda rate=1e-2: optax.yogi(rate, b2=0.99, eps=1e-3),
  'adagrad': lambda rate=1e-2: optax.adagrad(rate, eps=1e-3),
}
SCHEDULES: dict[str, Callable[..., Schedule]] = {
  'every': lambda run, period: pr.schedules.every(whole(period)),
  'doubling': lambda run, first, rounds_each=1: pr.schedules.doubling(
    whole(first), num_steps=run.num_steps, rounds_each=whole(rounds_each)
  ),
  'linear_growth': lambda run, first, increment: pr.schedules.linear_growth(
    whole(first), increment=whole(increment), num_steps=run.num_steps
  ),
  'with_probability': lambda run, probability: pr.schedules.with_probability(
    probability, num_steps=run.num_steps, seed=run.seed
  ),
  'qsr': _qsr,
  'post_local': lambda run, switch_step, period: pr.schedules.post_local(
    whole(switch_step), whole(period)
  ),
  'at': lambda run, *steps: pr.schedules.at_steps(
    [whole(step) for step in steps]
  ),
  'intervals': lambda run, *lengths: pr.schedules.intervals(
    [whole(length) for length in lengths]
  ),
}
# Schedules of a list of any length, separated by + or a comma.
LISTED = ('at', 'intervals')
# Schedules that depend on the length of the run from the start.
OF_LENGTH = ('qsr',)
# Algorithms that can be the local step of another algorithm.
LOCAL: dict[str, Callable[..., pr.base.ReplicaTransformation]] = {
  'k_avg': pr.k_avg,
  'd_psgd': pr.d_psgd,
  'diffusion': pr.diffusion,
  'sgp': pr.sgp,
}


def mixing(flag: str, given: str) -> pr.mixing.Mixing:
  """Return the mixing that a flag names, such as 'erdos_renyi:0.5'.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  return made(flag, given, MIXINGS, given)


def compressor(flag: str, given: str) -> codecs.Compressor:
  """Return the compressor that a flag names, such as 'top_k:0.1'.

  In 'top_k:0.1:e3m0', e3m0 codes the values that top_k keeps.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  return _compressor(flag, given, given)


def _compressor(flag: str, given: str, text: str) -> codecs.Compressor:
  name, *parts = text.split(':')
  make = _choose(flag, given, name, COMPRESSORS)
  if name not in OF_VALUES:
    return _call(flag, given, make, *_numbers(flag, parts))
  numbers, rest = _split(parts)
  if not rest:
    return _call(flag, given, make, *numbers)
  values = _compressor(flag, given, rest)
  return _call(flag, given, make, *numbers, values=values)


def codec(flag: str, given: str) -> pr.codecs.Codec | codecs.Compressor:
  """Return the codec that a flag names.

  A compressor is a codec. 'feedback:top_k:0.1' has a memory, and
  'feedback:0.9:top_k:0.1' a memory with decay.
  'among_senders:feedback:top_k:0.1' is a codec of a codec.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  return _codec(flag, given, given)


def _codec(
  flag: str, given: str, text: str
) -> pr.codecs.Codec | codecs.Compressor:
  name, *parts = text.split(':')
  if name not in CODECS:
    _choose(flag, given, name, {**COMPRESSORS, **CODECS})
    return _compressor(flag, given, text)
  numbers, rest = _split(parts)
  if not rest:
    raise ValueError(
      f'--{flag}={given}: {name} needs a compressor, such as {name}:top_k:0.1'
    )
  inside = (_codec if name in OF_CODECS else _compressor)(flag, given, rest)
  return _call(flag, given, CODECS[name], inside, *numbers)


def robust(
  flag: str, given: str, what: Sequence[str]
) -> pr.base.ReplicaTransformation:
  """Return the robust average that a flag names, such as 'trimmed:1'.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.
    what: registers to average.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  return made(flag, given, ROBUST, given, what)


def outer(flag: str, given: str) -> optax.GradientTransformation:
  """Return the outer optimizer that a flag names, such as 'nesterov:0.7'.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  name, *texts = given.split(':')
  _choose(flag, given, name, OUTER)
  numbers = _numbers(flag, texts)
  if not all(number > 0 for number in numbers):
    raise ValueError(f'--{flag}={given}: the numbers must be > 0')
  return _call(flag, given, OUTER[name], *numbers)


def schedule(flag: str, given: str, run: Run) -> Schedule:
  """Return the schedule that a flag names, such as 'doubling:4'.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.
    run: values that the schedule may depend on.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  name, colon, rest = given.partition(':')
  _choose(flag, given, name, SCHEDULES)
  separator = '[,+]' if name in LISTED else ':'
  if name in LISTED and not colon:
    raise ValueError(
      f'--{flag}={given}: {name} needs a list, such as {name}:3+7+11'
    )
  numbers = _numbers(flag, re.split(separator, rest) if colon else [])
  return _call(flag, given, SCHEDULES[name], run, *numbers)


def depends_on_length(given: str) -> bool:
  """Whether the length of a run changes its schedule from the start."""
  return given.partition(':')[0] in OF_LENGTH


def local(
  flag: str, given: str, tx: optax.GradientTransformation
) -> pr.base.ReplicaTransformation:
  """Return the local step that a flag names.

  It is the name of an algorithm, optionally followed by its period and its
  mixing: 'sgp', 'sgp:ring', 'k_avg:2:group_mean:4'.

  Args:
    flag: name of the flag, for messages.
    given: value of the flag.
    tx: optimizer of the local step.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  name, *parts = given.split(':')
  make = _choose(flag, given, name, LOCAL)
  numbers, rest = _split(parts)
  keywords: dict[str, Any] = dict(zip(('period',), map(whole, numbers)))
  if rest:
    found = made(flag, given, MIXINGS, rest)
    if 'mixing' in inspect.signature(make).parameters:
      keywords['mixing'] = found
    else:
      keywords['average'] = pr.sync(found)
  return _call(flag, given, make, tx, *numbers[1:], **keywords)


# Type of a keyword -> reader of its flag, and names of its values.
READERS: dict[Any, tuple[Callable[[str, str], Any], Sequence[str]]] = {
  pr.mixing.Mixing: (mixing, tuple(MIXINGS)),
  codecs.Compressor: (compressor, tuple(COMPRESSORS)),
  pr.codecs.Codec: (codec, (*COMPRESSORS, *CODECS)),
  optax.GradientTransformation: (outer, tuple(OUTER)),
}


def _choose(
  flag: str, given: str, name: str, table: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
  if name not in table:
    raise ValueError(f'unknown --{flag}={given}; use one of {", ".join(table)}')
  return table[name]


def made(
  flag: str,
  given: str,
  table: Mapping[str, Callable[..., Any]],
  text: str,
  *first: Any,
) -> Any:
  """Return the object of a name with numbers.

  Args:
    flag: name of the flag, for messages.
    given: whole value of the flag, for messages.
    table: name -> function that makes the object.
    text: the name, and numbers after colons.
    *first: arguments of the function before the numbers.

  Raises:
    ValueError: if the name is unknown, or its numbers are wrong.
  """
  name, *texts = text.split(':')
  make = _choose(flag, given, name, table)
  return _call(flag, given, make, *first, *_numbers(flag, texts))


def _call(
  flag: str, given: str, make: Callable[..., Any], *args: Any, **keywords: Any
) -> Any:
  signature = inspect.signature(make)
  try:
    bound = signature.bind_partial(*args, **keywords).arguments
  except TypeError as error:
    raise ValueError(f'--{flag}={given}: {error}') from None
  # Not by `bind`, because its words depend on the version of Python.
  required = (
    p.name
    for p in signature.parameters.values()
    if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
  )
  for name in required:
    if name not in bound:
      raise ValueError(
        f'--{flag}={given}: missing a required argument: {name!r}'
      )
  return make(*args, **keywords)


def _split(parts: Sequence[str]) -> tuple[list[float], str]:
  """Return the leading numbers, and the rest as text."""
  count = 0
  while count < len(parts) and _is_number(parts[count]):
    count += 1
  return [float(part) for part in parts[:count]], ':'.join(parts[count:])


def _numbers(flag: str, texts: Sequence[str]) -> list[float]:
  return [number(flag, float, text) for text in texts]


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def number(flag: str, kind: type, text: str) -> Any:
  """Return a number from text.

  Args:
    flag: name of the flag, for messages.
    kind: int or float.
    text: text of the number.

  Raises:
    ValueError: if the text is not a number of this kind.
  """
  try:
    return kind(text)
  except ValueError:
    raise ValueError(
      f'--{flag} expects {kind.__name__} numbers, got {text!r}'
    ) from None
