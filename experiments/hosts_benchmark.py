r"""Measure the seconds and bytes of algorithms on several hosts.

  python experiments/hosts_benchmark.py

By default it simulates four hosts on this machine, with links of 10, 100 and
1000 Mb/s; this requires Linux and root. It takes about three minutes for each
rate, and writes one file for each. A rate whose file exists is skipped, so that
an interrupted measurement continues; --remeasure measures it again. With
--workload=resnet8 it measures a step and a round of a network of the headline
figure.

On real hosts, start it by launch.py, and pass the rate of their links:

  python experiments/launch.py --hosts=a,b,c,d -- \
    experiments/hosts_benchmark.py --rates=1000

It writes to runs/hosts. Then write the table and the figure from the files:

  python experiments/hosts_report.py
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

from collections.abc import Sequence
import time

from absl import flags

from experiments.hosts import directory, measuring, simulating
from experiments.hosts.cases import WORKLOADS
from experiments.running.flags import cli, process_flags
from experiments.running.records import writing
from prsgd_jax.engine import processes

FLAGS = flags.FLAGS

flags.DEFINE_list(
  'rates',
  ['10', '100', '1000'],
  'Rates of the links in Mb/s. On real hosts, one rate: of the links between '
  'them.',
)
flags.DEFINE_enum(
  'workload',
  'mlp',
  list(WORKLOADS),
  'What to train: mlp, a perceptron with 301,066 parameters, by all '
  'algorithms; resnet8 or resnet20, a network of the headline figure, by two.',
)
flags.DEFINE_integer('num_hosts', 4, 'Number of simulated hosts, an even one.')
flags.DEFINE_integer(
  'rounds', 12, 'Largest number of blocks of each algorithm, >= 3.'
)
flags.DEFINE_float(
  'seconds',
  110.0,
  'Seconds after which no round begins, at each rate. Compilation takes '
  'another minute.',
)
flags.adopt_module_key_flags(directory)
flags.DEFINE_bool('remeasure', False, 'Measure a rate again whose file exists.')
flags.adopt_module_key_flags(process_flags)

# Seconds that compilation may take, because the processors may be busy.
STARTING = 900.0


def main() -> None:
  with cli.one_line_errors(ValueError):
    rates = [_rate(text) for text in FLAGS.rates]
    if FLAGS.rounds < measuring.LEAST_ROUNDS:
      raise ValueError(
        f'--rounds must be >= {measuring.LEAST_ROUNDS}, got {FLAGS.rounds}'
      )
    process_flags.join(FLAGS)
    if processes.count() > 1:
      _measure(rates)
      return
    simulating.check()
    for rate in rates:
      if path_of(rate).exists() and not FLAGS.remeasure:
        print(f'{path_of(rate)} exists; --remeasure measures it again')
      else:
        _simulate(rate)


def path_of(rate: float) -> pathlib.Path:
  """Return the file of a rate in Mb/s."""
  name = f'{rate:g}mbit{WORKLOADS[FLAGS.workload].suffix}.json'
  return pathlib.Path(FLAGS.measurements).absolute() / name


def _rate(text: str) -> float:
  try:
    rate = float(text)
  except ValueError:
    rate = 0.0
  if not 0 < rate < 1e6:
    raise ValueError(f'--rates must be numbers > 0 in Mb/s, got {text!r}')
  return rate


def _measure(rates: Sequence[float]) -> None:
  """Measure as one of several processes; process 0 writes the file."""
  if len(rates) != 1:
    raise ValueError(
      f'--rates must be one rate on real hosts, got {",".join(FLAGS.rates)}'
    )
  found = measuring.measure(
    WORKLOADS[FLAGS.workload],
    1e6 * rates[0],
    seconds=FLAGS.seconds,
    rounds=FLAGS.rounds,
  )
  if processes.is_first():
    path = path_of(rates[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write_text(path, writing.to_json(found))


def _simulate(rate: float) -> None:
  """Measure on simulated hosts with links of this rate in Mb/s."""
  print(f'{FLAGS.num_hosts} hosts, {rate:g} Mb/s ...', flush=True)
  begun = time.monotonic()
  simulating.run(
    pathlib.Path(__file__).resolve(),
    [
      f'--rates={rate:g}', f'--rounds={FLAGS.rounds}',
      f'--seconds={FLAGS.seconds}', f'--workload={FLAGS.workload}',
      f'--measurements={path_of(rate).parent}',
    ],
    num_hosts=FLAGS.num_hosts,
    rate=rate,
    seconds=2 * FLAGS.seconds + STARTING,
  )  # fmt: skip
  print(f'{path_of(rate)}: {time.monotonic() - begun:.0f} s', flush=True)


if __name__ == '__main__':
  cli.run(main)
