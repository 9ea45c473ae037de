"""List the phrases in prose that words.txt advises against.

  python experiments/tools/words.py

`make lint` runs it. It reads the comments and strings of Python files and the
text of Markdown files that git knows, and exits with 1 if it finds a phrase.
"""

import pathlib
import re
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from collections.abc import Iterator
import io
import subprocess
import tokenize
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
LIST = ROOT / 'words.txt'
# A changelog stays as it was written; the others name phrases to avoid.
SKIPPED = (
  'CHANGELOG.md',
  'experiments/tools/words.py',
  'tests/words_test.py',
)
_PROSE = (tokenize.COMMENT, tokenize.STRING)
# Python 3.12 and later have tokens of their own for the text of an f-string.
_TEXT = getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)


class Phrase(NamedTuple):
  """What to avoid, and what to write instead."""

  pattern: re.Pattern[str]
  advice: str


def read_list(text: str) -> list[Phrase]:
  """Read lines `pattern -> advice`.

  Raises:
    ValueError: if a line has no advice, or its pattern is malformed.

  Example:
    >>> read_list('whilst -> while')[0].advice
    'while'
  """
  phrases = []
  for number, line in enumerate(text.splitlines(), 1):
    if not line or line.startswith('#'):
      continue
    pattern, arrow, advice = line.rpartition(' -> ')
    if not arrow:
      raise ValueError(
        f'{LIST.name}:{number} must be PATTERN -> ADVICE, got {line!r}'
      )
    try:
      phrases.append(Phrase(re.compile(pattern), advice))
    except re.error as error:
      raise ValueError(f'{LIST.name}:{number}: {error}') from None
  return phrases


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
  """Yield the lines of a file that people read, with their numbers."""
  if not name.endswith('.py'):
    yield from enumerate(text.splitlines(), 1)
    return
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type in _PROSE or token.type == _TEXT:
      yield from enumerate(token.string.splitlines(), token.start[0])


def find(name: str, text: str, phrases: list[Phrase]) -> Iterator[str]:
  """Yield a line for each phrase in a file: where, what, what to write.

  Example:
    >>> list(find('a.md', 'and whilst', read_list('whilst -> while')))
    ["a.md:1: 'whilst', write: while"]
  """
  for number, line in prose(name, text):
    for phrase in phrases:
      if found := phrase.pattern.search(line):
        yield f'{name}:{number}: {found[0]!r}, write: {phrase.advice}'


def main() -> int:
  phrases = read_list(LIST.read_text())
  names = subprocess.run(
    ['git', '-C', str(ROOT), 'ls-files', '*.py', '*.md'],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  lines = [
    line
    for name in names
    if name not in SKIPPED
    for line in find(name, (ROOT / name).read_text(), phrases)
  ]
  print('\n'.join(lines) or 'words: none to avoid')
  return int(bool(lines))


if __name__ == '__main__':
  sys.exit(main())
