"""Values of --faults: replicas that crash, come late, are slow, or return NaN.

A fault is a name with numbers after colons, such as crash:3:100; several are
separated by commas (+ in --run).
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

from experiments.running.flags import named
from experiments.running.flags.named import whole
import prsgd_jax as pr
from prsgd_jax.faults.injection import REJOIN

OPTIONS = ('faults', 'rejoin')


_Make = Callable[..., pr.faults.Fault]


def _nan(what: str) -> _Make:
  return lambda seed, replica, at, until=None: pr.faults.nan(
    whole(replica), at=whole(at), until=whole(until), what=what
  )


# Functions of the seed of the run, then of the numbers.
FAULTS: dict[str, _Make] = {
  'crash': lambda seed, replica, at, until=None: pr.faults.crash(
    whole(replica), at=whole(at), until=whole(until)
  ),
  'late': lambda seed, replica, at=0, until=None: pr.faults.late(
    whole(replica), at=whole(at), until=whole(until)
  ),
  'slow': lambda seed, replica, factor, at=0, until=None: pr.faults.slow(
    whole(replica), factor=factor, at=whole(at), until=whole(until)
  ),
  'nan': _nan('grads'),
  'nan_params': _nan('params'),
  'random_crashes': lambda seed, p, steps: pr.faults.random_crashes(
    p, duration=whole(steps), seed=seed
  ),
  'random_delays': lambda seed, p: pr.faults.random_delays(p, seed=seed),
  'random_nans': lambda seed, p: pr.faults.random_nans(p, seed=seed),
}


def parse(given: str, seed: int = 0) -> list[pr.faults.Fault]:
  """Return the faults that --faults names.

  Args:
    given: value of the flag, such as 'crash:3:100,late:7'.
    seed: seed of the draws of random faults.

  Raises:
    ValueError: if a name is unknown, or its numbers are wrong.

  Example:
    >>> [fault.kind for fault in parse('crash:3:100:200,late:7')]
    ['crash', 'late']
  """
  return [
    named.made('faults', text, FAULTS, text, seed)
    for text in re.split('[,+]', given)
  ]


def check(options: Mapping[str, Any]) -> None:
  """Check the faults of a run.

  Args:
    options: flag -> value, of the run.

  Raises:
    ValueError: if a fault is invalid, or --rejoin has no effect.
  """
  faults = parse(options['faults']) if 'faults' in options else []
  returns = any(f.kind == 'crash' and f.returns for f in faults)
  if 'rejoin' in options and not returns:
    raise ValueError(
      '--rejoin does nothing without a crash that ends, such as '
      '--faults=crash:3:100:200; leave it out'
    )


def inject(
  algorithm: pr.base.ReplicaTransformation,
  options: Mapping[str, Any],
  seed: int,
) -> pr.base.ReplicaTransformation:
  """Return the algorithm with the faults of a run.

  Args:
    algorithm: the algorithm of the run.
    options: flag -> value, of the run.
    seed: seed of the run.
  """
  if 'faults' not in options:
    return algorithm
  faults = parse(options['faults'], seed)
  rejoin = options.get('rejoin', REJOIN[0])
  return pr.faults.inject(algorithm, *faults, rejoin=rejoin)
