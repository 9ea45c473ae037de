r"""Check a plan of costs.py on hosts with links of a known rate.

  python experiments/plan_check.py \
    --flagfile=experiments/presets/plan.flags

It trains the pilots, and then simulates hosts with links of 100 and 1000 Mb/s
on this machine; this requires Linux and root. At each rate it measures the
links and the time of a step, makes the plan, and trains three runs for real
until the averaged model reaches --target_loss: the recommended one, the second
and the last that reaches it. It takes a few minutes for each rate.

It writes a file for each rate and table.md to --plan_results. A rate whose file
exists is skipped, so that an interrupted check continues.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import time

from absl import flags

from experiments import costs
from experiments.hosts import simulating
from experiments.planning import checking, plans
from experiments.running.flags import cli, process_flags, speed_flags
from experiments.running.process import locks
from experiments.running.records import json_files, writing
from prsgd_jax.engine import processes

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(costs)
flags.DEFINE_list('link_rates', ['100', '1000'], 'Rates of the links in Mb/s.')
flags.DEFINE_string(
  'plan_results',
  'runs/plan_check',
  'Directory of the measurements and the pilots of a check.',
)

# Seconds after which the processes of a rate are ended.
LIMIT = 1800.0


def main() -> None:
  with cli.one_line_errors(ValueError, locks.LockError):
    rates = [_rate(text) for text in FLAGS.link_rates]
    process_flags.join(FLAGS)
    speed_flags.apply(FLAGS)
    FLAGS['workdir'].parse(str(_results() / 'pilots'))
    if processes.count() > 1:
      _measure(rates[0])
      return
    simulating.check()
    _results().mkdir(parents=True, exist_ok=True)
    print('pilots ...', flush=True)
    plans.make(plans.prepare(FLAGS))
    for rate in rates:
      _simulate(rate)
    found = [json_files.read(path_of(rate), checking.FORM) for rate in rates]
  page = checking.page(found)
  writing.write_text(_results() / 'table.md', page)
  print(page)


def path_of(rate: float) -> pathlib.Path:
  """Return the file of a rate in Mb/s."""
  return _results() / f'{rate:g}mbit.json'


def _results() -> pathlib.Path:
  return pathlib.Path(FLAGS.plan_results).absolute()


def _rate(text: str) -> float:
  try:
    rate = float(text)
  except ValueError:
    rate = 0.0
  if not 0 < rate < 1e6:
    raise ValueError(f'--link_rates must be numbers > 0 in Mb/s, got {text!r}')
  return rate


def _simulate(rate: float) -> None:
  """Measure on simulated hosts unless the file of the rate exists."""
  if path_of(rate).exists():
    print(f'{path_of(rate)} exists; remove it to measure again')
    return
  print(f'{FLAGS.num_replicas} hosts, {rate:g} Mb/s ...', flush=True)
  begun = time.monotonic()
  simulating.run(
    pathlib.Path(__file__).resolve(),
    [*sys.argv[1:], f'--link_rates={rate:g}', f'--plan_results={_results()}'],
    num_hosts=FLAGS.num_replicas,
    rate=rate,
    seconds=LIMIT,
  )
  print(f'{path_of(rate)}: {time.monotonic() - begun:.0f} s', flush=True)


def _measure(rate: float) -> None:
  """Measure as one of several processes; process 0 writes the file."""
  found = checking.measure(FLAGS, 1e6 * rate)
  if processes.is_first():
    writing.write_text(path_of(rate), writing.to_json(found))


if __name__ == '__main__':
  cli.run(main)
