"""Ways in which a file of a run may be damaged, by name."""

import os

NESTED = b'[' * 100_000 + b']' * 100_000


def _replaced(make):
  """A damage that puts something else in a file's place."""

  def damage(path):
    path.unlink()
    make(path)

  return damage


def _written(data):
  """A damage that writes other bytes, made from those that were there."""

  def damage(path):
    path.write_bytes(data(path.read_bytes()))

  return damage


# What no reader of JSON may take.
DAMAGES = {
  'a directory': _replaced(os.mkdir),
  'a pipe': _replaced(os.mkfifo),
  'a link to itself': _replaced(lambda path: path.symlink_to(path)),
  'not UTF-8': _written(lambda data: b'\xff\xfe\n' + data),
  'zeros': _written(lambda data: bytes(len(data)) + b'\n'),
  'terabytes of zeros': lambda path: os.truncate(path, 2**42),
  'a bit flipped': _written(lambda data: b'k' + data[1:]),
  'cut in the middle': _written(lambda data: data[: len(data) // 2] + b'\n'),
  'null': _written(lambda data: b'null\n'),
  'a list': _written(lambda data: b'[]\n'),
  'pairs': _written(lambda data: b'[["step", 1]]\n'),
  'a number': _written(lambda data: b'7\n'),
  'a string': _written(lambda data: b'"step"\n'),
  'an empty object': _written(lambda data: b'{}\n'),
  'too deep for Python': _written(lambda data: NESTED + b'\n'),
  'too deep for us': _written(lambda data: b'[' * 50 + b']' * 50 + b'\n'),
  'too long a number': _written(lambda data: b'1' * 10_000 + b'\n'),
}  # fmt: skip


def changes(value, place=()):
  """(what, value) for every value inside an object put into another one."""
  for name, inner in value.items():
    here = '.'.join((*place, name))
    yield f'without {here}', {k: v for k, v in value.items() if k != name}
    # Half of a surrogate pair is no text, 10^400 is no float.
    for other in (None, [], {}, 'x', '\ud800', True, 10**400):
      if type(other) is not type(inner):
        yield f'{here} is {str(other)[:9]!r}', {**value, name: other}
    if isinstance(inner, dict):
      for what, changed in changes(inner, (*place, name)):
        yield what, {**value, name: changed}


def remove(path):
  """Remove what a damage put in a file's place."""
  if path.is_dir():
    path.rmdir()
  else:
    path.unlink()
