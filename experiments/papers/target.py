"""What a reproduction is: claims, measured numbers, and a figure of them."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import pathlib
from typing import Any, Literal, NamedTuple

from absl import flags
from matplotlib.figure import Figure

from experiments.running.execution import experiment, runs
from experiments.running.execution.intervals import Intervals
from experiments.running.execution.parts import prepare
from experiments.running.flags import config
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax.data.datasets import load_dataset

INTERVALS = ('log_every', 'eval_every', 'checkpoint_every')

Verdict = Literal['yes', 'partly', 'no']


class Claim(NamedTuple):
  """One thing that a paper says, and what was seen of it.

  Attributes:
    says: what the paper says, with its source; recalled figures say so.
    measured: the numbers, with their spread over seeds.
    reproduced: whether it was, decided by the numbers by a stated rule.
    tried: what was tried where it was not, or what the rule was.
  """

  says: str
  measured: str
  reproduced: Verdict
  tried: str = ''


class Outcome(NamedTuple):
  """What a target measured; `data` is all that its figure is drawn from."""

  claims: Sequence[Claim]
  data: Mapping[str, Any]
  seeds: Sequence[int]


class Setting(NamedTuple):
  """How a target is to be run.

  Attributes:
    scale: 'cpu', in two and a half minutes on two cores; 'full', the paper's
      own setting; 'test', a few steps of the full setting, to see it start.
    data_dir: where TFDS directories are.
    workdir: of runs that can be gone on with.
  """

  scale: str
  data_dir: str | None
  workdir: pathlib.Path


class Target(NamedTuple):
  """One figure or table of a paper.

  Attributes:
    name: that of its module.
    title: what is compared, in a few words.
    paper: where it stands.
    measure: does the work; must go on where it was cut off, or be short.
    draw: draws the data of the outcome, as they come back from JSON.
    scales: of 'cpu' and 'full', those that it has.
  """

  name: str
  title: str
  paper: str
  measure: Callable[[Setting], Outcome]
  draw: Callable[[Mapping[str, Any], Figure], None]
  scales: tuple[str, ...] = ('cpu',)


def verdict(holds: bool, partly: bool = False) -> Verdict:
  """'yes' if it holds, else 'partly' if that does."""
  return 'yes' if holds else 'partly' if partly else 'no'


def train(
  setting: Setting,
  algorithm: str,
  options: Mapping[str, Any],
  network: pr.ledger.Network = pr.ledger.NETWORK,
  **fields: Any,
) -> list[records.Record]:
  """Trains as train.py does, from where it was cut off; its records.

  Args:
    setting: whose workdir holds the run.
    algorithm: its name.
    options: of the algorithm, by the names of the flags.
    network: for the modeled time.
    **fields: flags of train.py, by name; the others have their defaults.
  """
  given = {flag: fields.pop(flag) for flag in INTERVALS if flag in fields}
  num_devices = fields.pop('num_devices', None)
  defaults = {name: int(flags.FLAGS[name].default or 1) for name in INTERVALS}
  intervals = Intervals(**{**defaults, **given})
  run_config = make_config(algorithm, options, **fields)
  dataset = load_dataset(run_config.dataset, setting.data_dir)
  parts = experiment.assemble(run_config, dataset, num_devices, network)
  # The fields by a digest, for all their names are too long for a file's.
  digest = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()
  name = f'{run_config.slug()}-seed{run_config.seed}-{digest[:8]}'
  workdir = setting.workdir / name
  with runs.hold(workdir):
    runs.open_workdir(parts, workdir, intervals, resume=True)
    runs.execute(prepare(parts), workdir, intervals, progress=False)
  return records.read_records(workdir)


def make_config(
  algorithm: str, options: Mapping[str, Any], **fields: Any
) -> config.RunConfig:
  """A run whose other flags have their defaults.

  Raises:
    ValueError: if a value has no sense, or does nothing for this run.
  """
  names = config.RunConfig.__dataclass_fields__.keys() - {'options'}
  defaults = {n: flags.FLAGS[n].default for n in names}
  values = {**defaults, **fields, 'algorithm': algorithm}
  values['learning_rate_drops'] = tuple(values['learning_rate_drops'])
  return config.check(config.RunConfig(**values, options=options))
