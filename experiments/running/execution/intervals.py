"""How often a run records, evaluates and saves."""

from typing import NamedTuple

from absl import flags


class Intervals(NamedTuple):
  """Steps between records, evaluations and checkpoints."""

  log_every: int
  eval_every: int
  checkpoint_every: int

  @classmethod
  def from_flags(cls, values: flags.FlagValues) -> 'Intervals':
    """The intervals that the flags name.

    Raises:
      ValueError: as `check`.
    """
    found = cls(values.log_every, values.eval_every, values.checkpoint_every)
    found.check()
    return found

  def check(self) -> None:
    """Raise ValueError unless all are positive multiples of `log_every`."""
    if self.log_every < 1:
      raise ValueError(f'--log_every must be >= 1, got {self.log_every}')
    for name, value in self._asdict().items():
      if value < 1 or value % self.log_every:
        raise ValueError(
          f'--{name} must be a multiple >= 1 of --log_every='
          f'{self.log_every}, got {value}'
        )
