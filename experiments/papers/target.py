"""A reproduction: claims, measured numbers and a figure.

Each module `t01_...`, `t02_...` has a `Target`, whose functions measure and
draw. `train` runs an algorithm as `train.py` does, for targets that need it.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import pathlib
from typing import Any, NamedTuple

from absl import flags
from matplotlib.figure import Figure

from experiments.papers import pieces as piecewise
from experiments.papers.claims import Claim
from experiments.papers.pieces import Piece
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
    scale: 'cpu' takes at most three minutes on two cores; 'long' takes hours
      on them; 'full' is the paper's own setting; 'test' is a few steps of the
      long or the full setting.
    data_dir: the directory of the TFDS data sets.
    workdir: the directory of runs that can be resumed.
    results: the directory of the results, with the curves that are kept.
      Default: no curve is kept.
  """

  scale: str
  data_dir: str | None
  workdir: pathlib.Path
  results: pathlib.Path | None = None


class Target(NamedTuple):
  """One figure or table of a paper.

  Attributes:
    name: the name of its module.
    title: a few words on what is compared.
    paper: the paper, with the number of the figure or table.
    measure: function that does the runs; it resumes them or is short.
    draw: function that draws the data of the outcome, as read from JSON.
    scales: the available scales, out of 'cpu', 'long' and 'full'.
    pieces: function that lists the runs of a long or full scale, which run
      before `measure` in the order that shows most first. Default: none.
    judges_part: whether `measure` judges the finished pieces and trains
      nothing, so that it is called after each piece. Its data then have
      `hours`, the time of these pieces. Default: False.
    draw_so_far: function that returns the data of a figure of unfinished
      pieces, None without records. Default: none.
  """

  name: str
  title: str
  paper: str
  measure: Callable[[Setting], Outcome]
  draw: Callable[[Mapping[str, Any], Figure], None]
  scales: tuple[str, ...] = ('cpu',)
  pieces: Callable[[Setting], Sequence[Piece]] | None = None
  judges_part: bool = False
  draw_so_far: Callable[[Setting], Mapping[str, Any] | None] | None = None


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
  made = make_piece(setting, algorithm, options, network, **fields)
  return piecewise.train(made, setting.data_dir)


def make_piece(
  setting: Setting,
  algorithm: str,
  options: Mapping[str, Any],
  network: pr.ledger.Network = pr.ledger.NETWORK,
  *,
  label: str = '',
  num_examples: int = 0,
  priority: int = 0,
  **fields: Any,
) -> Piece:
  """Return the run of `train` as a piece.

  Args:
    setting: its workdir holds the run.
    algorithm: the name of the algorithm.
    options: options of the algorithm, by the names of the flags.
    network: network of the modeled time.
    label: name of the curve.
    num_examples: number of training examples, for the progress.
    priority: pieces with a smaller number run first.
    **fields: flags of train.py, by name; other flags keep their defaults.
  """
  given = {flag: fields.pop(flag) for flag in INTERVALS if flag in fields}
  num_devices = fields.pop('num_devices', None)
  defaults = {name: int(flags.FLAGS[name].default or 1) for name in INTERVALS}
  run_config = make_config(algorithm, options, **fields)
  # A digest, because the names of all fields are too long for a file name.
  digest = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()
  name = f'{run_config.slug()}-seed{run_config.seed}-{digest[:8]}'
  return Piece(
    label=label,
    config=run_config,
    intervals=Intervals(**{**defaults, **given}),
    workdir=setting.workdir / name,
    load=lambda data_dir: load_dataset(run_config.dataset, data_dir),
    num_examples=num_examples,
    network=network,
    num_devices=num_devices,
    priority=priority,
  )


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
