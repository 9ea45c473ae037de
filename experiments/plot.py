r"""Draw figures of the runs of train.py, compare.py or sweep.py.

  python experiments/plot.py runs/a runs/b --x=epoch,modeled_seconds \
    --y=loss,test_accuracy --output=fig.png

The figure has a row of panels for each --y and a column for each --x. Runs that
differ only in the seed are drawn as one curve with a band. The label of a curve
names the other settings that differ.
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
from experiments.tools import axes, figures

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(axes)
flags.DEFINE_list(
  'linear',
  [],
  'Measures of --x and --y to draw on a linear axis. Default: the usual axis '
  'of each measure.',
)
flags.DEFINE_list(
  'log',
  [],
  'Measures of --x and --y to draw on a logarithmic axis. Default: the usual '
  'axis of each measure.',
)
flags.DEFINE_string('title', None, 'Text above the panels. Default: none.')
flags.DEFINE_enum(
  'band',
  'range',
  figures.BANDS,
  'Band around the mean over seeds: from the smallest to the largest value '
  '(range), one standard deviation to each side (std), or none.',
)
flags.DEFINE_string(
  'output',
  None,
  'File to write. The extension of a figure selects its format: .png, .pdf, '
  '.svg, or another one of matplotlib. Default: figure.png in plot.py, '
  'report.html in report.py.',
)


def main(*paths: str) -> None:
  with cli.one_line_errors(ValueError):
    axes.check()
    if not paths:
      raise ValueError(
        'plot.py requires directories of runs, such as plot.py runs/a'
      )
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
  """Return the file to write, with the extension .png if it has none.

  Raises:
    ValueError: if it is a directory.
  """
  path = pathlib.Path(given)
  if path.is_dir():
    raise ValueError(
      f'--output={given} is a directory; pass a file, such as '
      f'--output={path / "figure.png"}'
    )
  return path if path.suffix else path.with_name(f'{path.name}.png')


if __name__ == '__main__':
  cli.run(main)
