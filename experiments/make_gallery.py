"""Run the entries of the gallery and write docs/gallery.md.

  python -m experiments.make_gallery
  python -m experiments.make_gallery --entries=g1_momentum_buffers --again
  python -m experiments.make_gallery --redraw

Each entry is a module of experiments/gallery. It takes some minutes and writes
a JSON file of results and a PNG figure to experiments/results/gallery/. An
entry with a JSON file is skipped unless --again is given. The figures and the
sentences of the page are made from the JSON files.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import importlib
import pkgutil

from absl import flags

from experiments import gallery
from experiments.gallery import page
from experiments.gallery.entry import Entry
from experiments.papers import keeping
from experiments.papers.target import Setting
from experiments.running.flags import cli, kept_flags, speed_flags
from experiments.running.records import json_files

FLAGS = flags.FLAGS

RESULTS = pathlib.Path(__file__).parent / 'results' / 'gallery'

flags.adopt_module_key_flags(speed_flags)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(kept_flags)
flags.DEFINE_list(
  'entries',
  [],
  'Entries to run, with commas between them, such as g1_momentum_buffers. '
  'Default: all.',
)


def all_entries() -> dict[str, Entry]:
  """Return every entry by the name of its module."""
  names = sorted(
    module.name
    for module in pkgutil.iter_modules(gallery.__path__)
    if module.name[0] == 'g' and module.name[1].isdigit()
  )
  package = gallery.__name__
  return {n: importlib.import_module(f'{package}.{n}').ENTRY for n in names}


def main() -> None:
  tuned = speed_flags.apply(FLAGS)
  known = all_entries()
  with cli.one_line_errors(ValueError):
    chosen = _chosen(known)
  if not FLAGS.redraw:
    print(tuned, end='')
  with cli.one_line_errors(ValueError, json_files.DamagedFile):
    for entry in chosen:
      _redraw(entry) if FLAGS.redraw else _run(entry)
    written = page.write(RESULTS, known)
  print(f'page: {written}')


def _chosen(entries: dict[str, Entry]) -> list[Entry]:
  """Return the entries that the flags select.

  Raises:
    ValueError: if a name is unknown.
  """
  for name in FLAGS.entries:
    if name not in entries:
      raise ValueError(
        f'unknown entry {name!r}; use some of {", ".join(entries)}'
      )
  return [entries[name] for name in FLAGS.entries or entries]


def _kept(entry: Entry) -> pathlib.Path:
  return RESULTS / f'{entry.target.name}.json'


def _run(entry: Entry) -> None:
  """Measure an entry unless it is done, save its results, and draw them."""
  target, kept = entry.target, _kept(entry)
  if kept.exists() and not FLAGS.again:
    print(f'{target.name}: already done, saved in {kept}')
    return
  print(f'{target.name}: {target.title}', flush=True)
  workdir = pathlib.Path(FLAGS.workdir or 'runs/gallery') / target.name
  keeping.measure(target, Setting('cpu', FLAGS.data_dir, workdir), kept)
  for sentence in entry.sentences(_data(entry)):
    print(f'  {sentence}')


def _redraw(entry: Entry) -> None:
  """Draw the saved results of an entry; run nothing."""
  if _kept(entry).exists():
    figure = _kept(entry).with_suffix('.png')
    keeping.draw(entry.target, _data(entry), figure)
    print(f'figure: {figure}')


def _data(entry: Entry) -> dict[str, object]:
  check = json_files.object_of({'data': json_files.anything})
  data: dict[str, object] = json_files.read(_kept(entry), check)['data']
  return data


if __name__ == '__main__':
  cli.run(main)
