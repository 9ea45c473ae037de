r"""Draws the standard figures of any runs: of train.py, compare.py or sweep.py.

  python experiments/plot.py runs/a runs/b --x=epoch,modeled_seconds \
    --y=loss,test_accuracy --output=fig.png

has a row of panels for each --y and a column for each --x. Runs that differ in
the seed alone are one curve, with a band; where other settings differ the label
says which. The ending of --output is the format: .png, .pdf, .svg and others of
matplotlib.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds


from absl import flags

from experiments.running.flags import cli
from experiments.tools import figures

FLAGS = flags.FLAGS

_RECORDED = 'or any number that the runs recorded'
flags.DEFINE_list(
  'x', ['step', 'bytes_sent'], f'Some of {", ".join(figures.X)}, {_RECORDED}.'
)
flags.DEFINE_list(
  'y', ['loss', 'test_error'], f'Some of {", ".join(figures.Y)}, {_RECORDED}.'
)
flags.DEFINE_list('linear', [], 'Which of them have a linear axis.')
flags.DEFINE_list('log', [], 'Which of them have a logarithmic axis.')
flags.DEFINE_string('title', None, 'Text above the panels.')
flags.DEFINE_enum(
  'band',
  'range',
  figures.BANDS,
  'Over the seeds: from least to most, one standard deviation, or none.',
)
flags.DEFINE_string(
  'output',
  None,
  'The file to write [figure.png of plot.py, report.html]; a figure is a .png, '
  '.pdf, .svg or other format of matplotlib, by the ending.',
)


def main(*paths: str) -> None:
  with cli.one_line_errors(ValueError):
    check()
    if not paths:
      raise ValueError('plot.py needs directories of runs, as plot.py runs/a')
    runs = figures.read_runs(figures.find_runs(paths))
    output = _output(FLAGS.output or 'figure.png')
    scales = dict.fromkeys(FLAGS.linear, 'linear')
    scales |= dict.fromkeys(FLAGS.log, 'log')
    figures.draw(
      runs,
      output,
      x=FLAGS.x,
      y=FLAGS.y,
      band=FLAGS.band,
      title=FLAGS.title,
      scales=scales,
    )
  print(f'figure of {len(runs)} runs: {output}')


def _output(given: str) -> pathlib.Path:
  """The file to write; Matplotlib adds .png, the format, where there is none.

  Raises:
    ValueError: if it is a directory.
  """
  path = pathlib.Path(given)
  if path.is_dir():
    raise ValueError(
      f'--output={given} is a directory; pass a file, as '
      f'--output={path / "figure.png"}'
    )
  return path if path.suffix else path.with_name(f'{path.name}.png')


def check() -> None:
  """Raises ValueError unless there are axes to draw."""
  for name in ('x', 'y'):
    if not FLAGS[name].value:
      raise ValueError(f'--{name} is empty; pass some names, or leave it out')


if __name__ == '__main__':
  cli.run(main)
