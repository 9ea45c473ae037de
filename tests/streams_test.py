"""Tests of `running/process/streams.py`, `interrupts.py` and their users."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from experiments.running.flags import cli

HERE = pathlib.Path(cli.__file__).parents[2]
# A program that prints, works, prints again, and names what was lost.
PROGRAM = """
import pathlib, sys
from experiments.running.process import streams
streams.install()
for i in range(3000):
  print('x' * 100, 'ä')
  print('y' * 100, file=sys.stderr)
sys.stdout.flush()
lost = streams.lost_output()
pathlib.Path(sys.argv[1]).write_text(str(lost and lost.strerror))
"""
PLAIN = PROGRAM.replace('streams.install()', 'pass')


def run(program, redirection, path):
  """Return the exit code and the stderr of the shell."""
  script = f'set -o pipefail; "$0" -c "$1" "$2" {redirection}'
  done = subprocess.run(
    ['bash', '-c', script, sys.executable, program, path],
    capture_output=True, text=True, check=False, cwd=HERE.parent,
    env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
  )  # fmt: skip
  return done.returncode, done.stderr


class StreamsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('| head -1 2>/dev/null', 'None'),
    ('2>&1 | head -1', 'None'),
    ('>/dev/full 2>/dev/null', 'No space left on device'),
    ('>/dev/null 2>/dev/full', 'None'),
    ('>/dev/full 2>&1', 'No space left on device'),
    ('>&- 2>&-', 'None'),
    ('>&-', 'None'),
    ('2>&- >/dev/null', 'None'),
    ('<&- >/dev/null 2>&1', 'None'),
  )
  def test_work_is_done_without_them(self, redirection, lost):
    path = self.enterContext(tempfile.NamedTemporaryFile()).name
    code, err = run(PROGRAM, redirection, path)
    self.assertEqual(code, 0)
    self.assertNotIn('Error', err)
    self.assertEqual(pathlib.Path(path).read_text(), lost)

  @parameterized.parameters('| head -1', '>/dev/full', '>/dev/null 2>/dev/full')
  def test_plain_streams_would_end_it(self, redirection):
    path = self.enterContext(tempfile.NamedTemporaryFile()).name
    code, _ = run(PLAIN.replace("'ä'", ''), redirection, path)
    self.assertNotEqual(code, 0)
    self.assertEqual(pathlib.Path(path).read_text(), '')

  def test_closed_streams_are_not_taken_by_files(self):
    # A library that prints to descriptor 2 must not write into a file.
    program = """
import os, pathlib, sys
from experiments.running.process import streams
streams.install()
with open(sys.argv[1], 'w') as file:
  assert file.fileno() > 2, file.fileno()
  os.write(2, b'from C++')
  file.write('whole')
"""
    path = self.enterContext(tempfile.NamedTemporaryFile()).name
    code, _ = run(program, '<&- >&- 2>&-', path)
    self.assertEqual(code, 0)
    self.assertEqual(pathlib.Path(path).read_text(), 'whole')

  def test_program_whose_output_is_its_work_fails_without_it(self):
    command = f'{sys.executable} {HERE / "costs.py"} --run=ssgd'
    script = f'{command} >/dev/full; echo $? >&2; {command} | true; echo $? >&2'
    done = subprocess.run(
      ['bash', '-c', f'set -o pipefail; {script}'],
      capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    self.assertEqual(
      done.stderr,
      'costs.py: error: stdout cannot be written (No space left on device)\n'
      '1\n0\n',
    )


class InterruptsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('interrupts.end_silently()', 130, ''),
    ('interrupts.end_silently(); interrupts.restore()', -2, 'Traceback'),
  )
  def test_interrupt(self, first, code, err):
    program = f"""
from experiments.running.process import interrupts
{first}
import time
print('importing', flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
      [sys.executable, '-c', program], cwd=HERE.parent,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    self.assertEqual(process.stdout.readline(), 'importing\n')
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    self.assertEqual(process.returncode, code)
    self.assertEqual(said[: len(err)], err)
    self.assertEqual(bool(said), bool(err))

  def test_ignored_interrupt_stays_ignored(self):
    program = (
      'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); '
      'from experiments.running.process import interrupts; '
      'interrupts.end_silently(); '
      'signal.raise_signal(signal.SIGINT); print("done")'
    )
    done = subprocess.run(
      [sys.executable, '-c', program], cwd=HERE.parent,
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    self.assertEqual(done.stdout, 'done\n')

  @parameterized.parameters(
    'costs', 'plot', 'report', 'prepare_data', 'tools/results', 'benchmark',
    'tools/benchmark_versions', 'tools/execute_notebooks',
  )  # fmt: skip
  def test_programs_begin_with_it(self, name):
    text = (HERE / f'{name}.py').read_text()
    _, _, after = text.partition('"""\n\n')
    before, found, _ = after.partition('  interrupts.end_silently()')
    self.assertTrue(found)
    # Quick imports only: pathlib and sys find the checkout.
    self.assertEqual(
      re.findall(r'(?m)^(?:import|from) .*$', before),
      [
        'import pathlib',
        'import sys',
        'from experiments.running.process import interrupts',
      ],
    )


if __name__ == '__main__':
  absltest.main()
