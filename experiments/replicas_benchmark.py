"""Measure the time of a step with 16 to 1024 replicas on one device.

  python experiments/replicas_benchmark.py
  python experiments/replicas_benchmark.py --patterns=ring --replica_counts=64

An MLP trains by local SGD without communication, and with one of several
patterns of communication in every step. The contestants take turns in rounds.
If the time is linear in the number of replicas, the ratio of the times per
replica is 1. It takes about two minutes; Ctrl-C ends it.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from absl import flags

from experiments.running.flags import cli
from experiments.running.records import writing
from experiments.tools import benchmark_patterns

FLAGS = flags.FLAGS
# Fewer make no quartiles.
LEAST_TURNS = 3
NAME = 'replicas'

flags.DEFINE_list(
  'patterns',
  list(benchmark_patterns.PATTERNS),
  'Patterns of communication to measure: '
  + ', '.join(benchmark_patterns.PATTERNS)
  + '. `none` is local SGD without communication, and `choco` sends a tenth of '
  'the entries on a ring.',
)
flags.DEFINE_list(
  'replica_counts',
  ['16', '64', '256', '1024'],
  'Numbers of replicas, each >= 2. `groups` requires multiples of '
  f'{benchmark_patterns.GROUP_SIZE}, and `random_pairs` even numbers.',
)
flags.DEFINE_integer(
  'turns',
  5,
  f'Number of times to measure each contestant, >= {LEAST_TURNS}.',
)
flags.DEFINE_string(
  'replicas_dir',
  None,
  f'Directory to write {NAME}.json and {NAME}.md to. A measurement in it is '
  'never overwritten. Default: none.',
)
flags.adopt_module_key_flags(cli)


def main() -> None:
  with cli.one_line_errors(ValueError):
    sizes = _checked()
    target = _target()
    cli.make_fake_devices(1)
    cases = [benchmark_patterns.make_case(n, FLAGS.data_dir) for n in sizes]
    number = len(sizes) * len(FLAGS.patterns)
    print(f'{number} programs compile, then take turns ...', flush=True)
    measured = benchmark_patterns.measure(cases, FLAGS.patterns, FLAGS.turns)
    print(f'\n{benchmark_patterns.terminal(measured)}')
    if target is not None:
      target.parent.mkdir(parents=True, exist_ok=True)
      writing.write_text(target, writing.to_json(measured))
      writing.write_text(
        target.with_suffix('.md'), benchmark_patterns.markdown(measured)
      )


def _checked() -> list[int]:
  """Return the numbers of replicas, after a check of all flags."""
  known = ', '.join(benchmark_patterns.PATTERNS)
  for name in FLAGS.patterns:
    if name not in benchmark_patterns.PATTERNS:
      raise ValueError(f'--patterns: unknown {name!r}; use {known}')
  if FLAGS.turns < LEAST_TURNS:
    raise ValueError(f'--turns must be >= {LEAST_TURNS}, got {FLAGS.turns}')
  texts = FLAGS.replica_counts
  sizes = [int(text) if text.isdecimal() else 0 for text in texts]
  if min(sizes, default=0) < 2:
    raise ValueError(
      '--replica_counts must be integers >= 2 such as 16,64, got '
      f'{",".join(texts)!r}'
    )
  if not FLAGS.patterns:
    raise ValueError(f'--patterns must name one of {known}, got none')
  return sorted({*sizes})


def _target() -> pathlib.Path | None:
  """Return the file to write."""
  if FLAGS.replicas_dir is None:
    return None
  path = pathlib.Path(FLAGS.replicas_dir) / f'{NAME}.json'
  if path.exists():
    raise ValueError(f'{path} exists; remove it, or pass another directory')
  return path


if __name__ == '__main__':
  cli.run(main)
