"""A reproduction: claims, measured numbers and a figure.

Each module `t01_...` to `t13_...` has a `Target`, whose functions measure and
draw. `train` runs an algorithm as `train.py` does, for targets that need it.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import pathlib
from typing import Any, NamedTuple

from absl import flags
from matplotlib.figure import Figure

from experiments.papers.claims import Claim
from experiments.running.execution import experiment, runs
from experiments.running.execution.intervals import Intervals
from experiments.running.flags import config
from experiments.running.records import records
import prsgd_jax as pr
from prsgd_jax.data.datasets import load_dataset

INTERVALS = ('log_every', 'eval_every', 'checkpoint_every')


class Outcome(NamedTuple):
  """The measurements of a target.

  Attributes:
    claims: claims, with their numbers and rules.
    data: data of the figure, of JSON types.
    seeds: seeds of the runs.
  """

  claims: Sequence[Claim]
  data: Mapping[str, Any]
  seeds: Sequence[int]


class Setting(NamedTuple):
  """The arguments of a target.

  Attributes:
    scale: 'cpu' takes at most three minutes on two cores; 'full' is the
      paper's own setting; 'test' is a few steps of the full setting.
    data_dir: the directory of the TFDS data sets.
    workdir: the directory of runs that can be resumed.
  """

  scale: str
  data_dir: str | None
  workdir: pathlib.Path


class Target(NamedTuple):
  """One figure or table of a paper.

  Attributes:
    name: the name of its module.
    title: a few words on what is compared.
    paper: the paper, with the number of the figure or table.
    measure: function that does the runs; it resumes them or is short.
    draw: function that draws the data of the outcome, as read from JSON.
    scales: the available scales, out of 'cpu' and 'full'.
  """

  name: str
  title: str
  paper: str
  measure: Callable[[Setting], Outcome]
  draw: Callable[[Mapping[str, Any], Figure], None]
  scales: tuple[str, ...] = ('cpu',)


def train(
  setting: Setting,
  algorithm: str,
  options: Mapping[str, Any],
  network: pr.ledger.Network = pr.ledger.NETWORK,
  **fields: Any,
) -> list[records.Record]:
  """Train as train.py does and return the records; resume an interrupted run.

  Args:
    setting: its workdir holds the run.
    algorithm: the name of the algorithm.
    options: options of the algorithm, by the names of the flags.
    network: network of the modeled time.
    **fields: flags of train.py, by name; other flags keep their defaults.
  """
  given = {flag: fields.pop(flag) for flag in INTERVALS if flag in fields}
  num_devices = fields.pop('num_devices', None)
  defaults = {name: int(flags.FLAGS[name].default or 1) for name in INTERVALS}
  intervals = Intervals(**{**defaults, **given})
  run_config = make_config(algorithm, options, **fields)
  dataset = load_dataset(run_config.dataset, setting.data_dir)
  parts = experiment.assemble(run_config, dataset, num_devices, network)
  # A digest, because the names of all fields are too long for a file name.
  digest = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()
  name = f'{run_config.slug()}-seed{run_config.seed}-{digest[:8]}'
  workdir = setting.workdir / name
  with runs.hold(workdir):
    runs.open_workdir(parts, workdir, intervals, resume=True)
    runs.execute(parts, workdir, intervals, progress=False)
  return records.read_records(workdir)


def make_config(
  algorithm: str, options: Mapping[str, Any], **fields: Any
) -> config.RunConfig:
  """Return the configuration of a run; other flags keep their defaults.

  Raises:
    ValueError: if a value is invalid, or has no effect on this run.
  """
  fields_of_runs = config.RunConfig.__dataclass_fields__.keys()
  names = fields_of_runs - {'options', 'sizes'}  # because these are no flags
  defaults = {n: flags.FLAGS[n].default for n in names}
  values = {**defaults, **fields, 'algorithm': algorithm}
  values['learning_rate_drops'] = tuple(values['learning_rate_drops'])
  return config.check(config.RunConfig(**values, options=options))
