r"""Write an HTML report of a sweep, of any runs, or of all reproductions.

  python experiments/report.py runs/sweep --output=report.html
  python experiments/report.py --reproductions

The report is a single file that needs neither a server nor a network. Click a
column header to sort a table. Long tables have a filter.

A report of runs shows the figures of --x and --y, a table of methods averaged
over seeds, the best values of a sweep, and a table of all runs. A report of
reproductions shows the claims and figures in --reproductions_dir.
"""

import pathlib
import sys

if __name__ == '__main__':
  # This checkout, because another one may be installed.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from experiments.running.process import interrupts

if __name__ == '__main__':
  interrupts.end_silently()  # before the other imports, which take seconds

import datetime

from absl import flags

from experiments import plot
from experiments.running.flags import cli
from experiments.running.records import writing
from experiments.tools import axes, report_claims, report_page, report_runs
from experiments.tools.report_page import Page

FLAGS = flags.FLAGS
HERE = pathlib.Path(__file__).parent

flags.adopt_module_key_flags(axes)
flags.adopt_module_key_flags(plot)
flags.DEFINE_bool(
  'reproductions',
  False,
  'Report the reproductions in --reproductions_dir, in addition to any runs.',
)
flags.DEFINE_string(
  'reproductions_dir',
  str(HERE / 'results' / 'reproduce'),
  'Directory of the reproductions: a .json and a .png file for each.',
)


def main(*paths: str) -> None:
  with cli.one_line_errors(ValueError):
    axes.check()
    if not paths and not FLAGS.reproductions:
      raise ValueError(
        'report.py requires directories of runs, such as report.py runs/sweep, '
        'or --reproductions'
      )
    made = page([pathlib.Path(path) for path in paths])
    output = pathlib.Path(FLAGS.output or 'report.html')
    try:
      output.parent.mkdir(parents=True, exist_ok=True)
      # Replaced, because the name of a file may not be UTF-8.
      text = report_page.render(made).encode(errors='replace').decode()
      writing.write_text(output, text)
    except OSError as error:
      raise ValueError(
        f'{output} cannot be written ({error.strerror}); pass another --output'
      ) from error
  print(f'report: {output}')


def page(paths: list[pathlib.Path]) -> Page:
  """Return the page of these runs and of the reproductions, if requested.

  Args:
    paths: directories of runs.

  Raises:
    ValueError: if no run or reproduction is found, or a file is damaged.
  """
  directory = pathlib.Path(FLAGS.reproductions_dir)
  found = report_claims.read(directory) if FLAGS.reproductions else []
  sections = [report_claims.section(one) for one in found]
  sections += [
    report_runs.section(path, FLAGS.x, FLAGS.y, FLAGS.band) for path in paths
  ]
  known = [report_claims.machines(found)] if found else []
  known += [report_runs.machines(paths)] if paths else []
  today = datetime.datetime.now(datetime.UTC).date().isoformat()
  facts = {'date': today}
  for name in ('machine', 'JAX', 'commit'):
    facts[name] = report_page.joined(k[name] for k in known if k[name])
  names = ', '.join(path.name or str(path) for path in paths)
  verdicts = [chip for one in found for chip in one.chips]
  return Page(
    title='Reproductions' if found else f'Runs in {names}',
    facts=report_page.as_facts(facts),
    sections=sections,
    tallies=[
      (chip, verdicts.count(chip))
      for chip in report_claims.VERDICTS.values()
      if chip in verdicts
    ],
    contents=report_claims.contents(found) if found else None,
  )


if __name__ == '__main__':
  cli.run(main)
