"""The flag --keep: which checkpoints of a run stay."""

from absl import flags

from prsgd_jax.engine.checkpoints import Retention

_FORM = (
  '--keep must be terms such as 3, all, every:1000, lowest:test_loss or '
  'highest:test_accuracy, joined by commas'
)


def from_flags(values: flags.FlagValues) -> Retention:
  """Return the rules that --keep names.

  Without a number or all, the newest checkpoint and the matches of the rules
  stay.

  Raises:
    ValueError: if a term is none of those, or names a measure that checkpoints
      lack.
  """
  return parse(values.keep, values.eval_every, values.checkpoint_every)


def parse(text: str, eval_every: int, checkpoint_every: int) -> Retention:
  """Return the rules of a text.

  Args:
    text: terms joined by commas.
    eval_every: steps between evaluations.
    checkpoint_every: steps between checkpoints.

  Raises:
    ValueError: as `from_flags`.

  Example:
    >>> parse('2,every:1000,lowest:test_loss', 100, 500)
    Retention(newest=2, every=1000, lowest=('test_loss',), highest=())
  """
  rules = Retention(newest=1)
  for term in text.split(','):
    name, _, value = term.partition(':')
    if term == 'all':
      rules = rules._replace(newest=None)
    elif _is_count(term):
      rules = rules._replace(newest=int(term))
    elif name == 'every' and _is_count(value):
      rules = rules._replace(every=int(value))
    elif name == 'lowest' and value:
      rules = rules._replace(lowest=(*rules.lowest, value))
    elif name == 'highest' and value:
      rules = rules._replace(highest=(*rules.highest, value))
    else:
      raise ValueError(f'{_FORM}, got {text!r}')
  _check_once(text)
  for measure in (*rules.lowest, *rules.highest):
    if measure != 'loss' and checkpoint_every % eval_every:
      raise ValueError(
        f'--keep={text} requires a --checkpoint_every that is a multiple of '
        f'--eval_every={eval_every}, got {checkpoint_every}'
      )
  return rules


def _check_once(text: str) -> None:
  """Raise ValueError if a later term would replace an earlier one."""
  names = [term.partition(':')[0] for term in text.split(',')]
  counts = sum(name == 'all' or _is_count(name) for name in names)
  if counts > 1 or names.count('every') > 1:
    raise ValueError(f'--keep has two terms of one kind, got {text!r}')


def _is_count(text: str) -> bool:
  return text.isascii() and text.isdigit() and 1 <= int(text[:20]) < 2**63
