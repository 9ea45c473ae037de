"""Measure all cases in one process of a run on several hosts.

The cases take turns in one set of processes. In each round, every case trains
for one block of steps. A block begins at a barrier and lasts until the slowest
process has finished. Counters of Linux show the bytes that each host sent, and
how much of the processors other programs used.
"""

from collections.abc import Callable
import pathlib
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import numpy as np

from experiments.hosts.cases import SEED, Case, Workload
from experiments.running.records import records
from experiments.tools import disturbances
import prsgd_jax as pr
from prsgd_jax.base import Array
from prsgd_jax.engine import processes
from prsgd_jax.engine.replica_mesh import ReplicaMesh, first
from prsgd_jax.engine.run_state import State
from prsgd_jax.engine.trainer import Trainer
from prsgd_jax.mixing import collectives
from prsgd_jax.models.classification import Task

# Steps of a block, a multiple of all periods.
BLOCK = 16
# Steps of a block on a slow link, if the case communicates as often. A link of
# fewer bits per second is slow; the averaged model is then not evaluated.
SHORT, SLOW = 4, 50e6
# Smallest number of rounds.
LEAST_ROUNDS = 3
# Messages in one measurement of the latency, and number of measurements.
PINGS, PING_REPEATS = 32, 9
# Different after each start of a machine, and equal for all its programs.
BOOT = pathlib.Path('/proc/sys/kernel/random/boot_id')


class Counters(NamedTuple):
  """Counters of a host and of this process.

  Attributes:
    sent: bytes that the host sent, with all headers.
    packets: packets that the host sent.
    busy: processor seconds that all programs of the machine used.
    own: processor seconds that this process used.
  """

  sent: int
  packets: int
  busy: float
  own: float


def read_counters() -> Counters:
  """Return the counters of Linux; the loopback interface does not count."""
  sent = packets = 0
  for line in pathlib.Path('/proc/net/dev').read_text().splitlines()[2:]:
    name, _, numbers = line.partition(':')
    if name.strip() != 'lo':
      sent += int(numbers.split()[8])
      packets += int(numbers.split()[9])
  busy = disturbances.busy_seconds()
  return Counters(sent, packets, busy, time.process_time())


def measure(
  workload: Workload, bits_per_second: float, *, seconds: float, rounds: int
) -> dict[str, Any]:
  """Measure all cases; every process must call it.

  Args:
    workload: model, data and cases.
    bits_per_second: rate of the links.
    seconds: time after which no round begins, except the first three.
    rounds: largest number of rounds.

  Returns:
    The measurements, of JSON types, equal in every process.
  """
  slow = bits_per_second < SLOW
  tested = workload.tested and not slow
  arrays, test = workload.data()
  data = pr.shared(arrays, batch_size=workload.batch_size, seed=SEED)
  task, point = workload.task(), workload.start()
  trainers = {
    case.label: pr.trainer(
      case.algorithm,
      task.loss_fn,
      num_replicas=processes.count(),
    )
    for case in workload.cases
  }
  states = {n: t.init(*point, seed=SEED) for n, t in trainers.items()}
  blocks: dict[str, list[Any]] = {case.label: [] for case in workload.cases}
  mesh = trainers[workload.cases[0].label].mesh
  evaluate = _evaluation(mesh, task, test)

  def train(case: Case) -> dict[str, Any]:
    steps = max(SHORT, case.period) if slow else BLOCK
    trainer, name = trainers[case.label], case.label
    states[name], found = _block(trainer, states[name], data, steps)
    if tested:
      found |= evaluate(states[name])
    return found

  warm = {}
  for case in workload.cases:
    warm[case.label] = train(case)
    if processes.is_first():
      print(f'compiled {case.label}', flush=True)
  message = latency(mesh)
  others: list[float] = []
  begun = time.monotonic()

  def goes_on() -> bool:
    late = time.monotonic() - begun > seconds
    return len(others) < (LEAST_ROUNDS if late else rounds)

  while processes.agree('the next round', goes_on()):
    before, round_begun = read_counters(), time.monotonic()
    # The order alternates, because a case may slow down the next one.
    for case in workload.cases[:: -1 if len(others) % 2 else 1]:
      blocks[case.label].append(train(case))
    lasted = time.monotonic() - round_begun
    others.append(share_of_others(before, lasted))
  return {
    'machine': records.machine(),
    'date': time.strftime('%Y-%m-%d', time.gmtime()),
    'hosts': processes.count(),
    'bits_per_second': bits_per_second,
    'latency': message,
    'others': others,
    'first': warm,
    'blocks': blocks,
  }


def _block(
  trainer: Trainer, state: State, data: Any, steps: int
) -> tuple[State, dict[str, Any]]:
  """Train for some steps, and return what they took.

  The measurement has the `seconds` of the slowest process, and the mean over
  the hosts of the `bytes` and `packets` that they sent.
  """
  jax.block_until_ready(state.on_devices)
  processes.barrier('the start of a block')
  before, begun = read_counters(), time.perf_counter()
  state, metrics = trainer.run(state, data, steps)
  jax.block_until_ready((state.on_devices, metrics))
  lasted = time.perf_counter() - begun
  processes.barrier('the end of a block')  # for the last packets
  after = read_counters()
  own = (lasted, after.sent - before.sent, after.packets - before.packets)
  rows = np.array(processes.collect('a block', own))
  return state, {
    'steps': steps,
    'seconds': float(rows[:, 0].max()),
    'bytes': float(rows[:, 1].mean()),
    'packets': float(rows[:, 2].mean()),
    'loss': float(np.asarray(metrics['loss']).mean()),
  }


def _evaluation(
  mesh: ReplicaMesh, task: Task, test: Any
) -> Callable[[State], dict[str, float]]:
  """Return the evaluation of the averaged model, one program for all cases."""
  mean = mesh.map(collectives.replica_mean)

  @jax.jit
  def measures(params: Any, model_state: Any) -> dict[str, Array]:
    found = task.eval_fn(params, model_state, test)
    return jax.tree.map(lambda x: x.mean(), found)

  def evaluate(state: State) -> dict[str, float]:
    own = state.on_devices
    means = mean((own.params, own.model_state))
    found = measures(*jax.tree.map(lambda x: first(x)[0], means))
    return {f'test_{name}': float(x) for name, x in found.items()}

  return evaluate


def share_of_others(before: Counters, lasted: float) -> float:
  """Return the largest share of a machine's processors that others used.

  Every process must call it.

  Args:
    before: counters at the start of the measurement.
    lasted: seconds of the measurement.
  """
  after = read_counters()
  own = (BOOT.read_text(), after.busy - before.busy, after.own - before.own)
  machines: dict[str, list[float]] = {}
  for name, busy, used in processes.collect('a round', own):
    most, total = machines.get(name, (0, 0))
    machines[name] = [max(most, busy), total + used]
  return max(
    disturbances.share_of_others(busy, own, lasted)
    for busy, own in machines.values()
  )


def latency(mesh: ReplicaMesh) -> float:
  """Return the seconds of a message of four bytes to the next host.

  Every process must call it.

  Args:
    mesh: one replica for each process.
  """

  def pass_on(x: Array) -> Array:
    def once(x: Array, _: Any) -> tuple[Array, Any]:
      return collectives.shift(x, 1), None

    return lax.scan(once, x, None, PINGS)[0]

  ping = mesh.map(pass_on)
  x = mesh.place(np.zeros(mesh.num_replicas, np.float32))
  times = []
  for _ in range(1 + PING_REPEATS):
    processes.barrier('a ping')
    begun = time.perf_counter()
    jax.block_until_ready(ping(x))
    times.append(time.perf_counter() - begun)
  own = float(np.median(times[1:])) / PINGS
  return max(processes.collect('the latency', own))
