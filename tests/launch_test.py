"""Tests of `launch.py`, with children that are shell scripts."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from unittest import mock

from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import launch
from experiments.running.flags import help_pages
from experiments.running.process import exit_codes, jobs, launching, signals

# Passes SIGTERM on; the first argument is the script of two children.
PROGRAM = """
import sys
sys.argv[0] = 'launch.py'
from experiments.running.process import launching, signals
signals.watch()
members = [launching.Member(['sh', '-c', sys.argv[1], str(i)]) for i in (0, 1)]
sys.exit(launching.run_together(members, grace_seconds=0.2).code)
"""
SAVES = """
trap 'echo saved; exit 75' TERM
echo ready
while :; do sleep 0.02; done
"""
# Runs a command here instead of on the host, which it writes down.
SSH = """#!/bin/sh
[ "$1 $2" = '-o BatchMode=yes' ] || exit 99
echo "$3: $4" >> "$SSH_LOG"
exec sh -c "$4"
"""


class LaunchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(contextlib.chdir(self.root))
    flags.FLAGS.mark_as_parsed()
    self.enterContext(mock.patch.object(launching, 'POLL_SECONDS', 0.01))
    self.enterContext(mock.patch.object(jobs, 'visible_gpus', return_value=[]))

  def launch(self, *command, **given):
    """Return the exit code and the lines of stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    settings = {'num_processes': 2, 'grace_seconds': 0.2, **given}
    code = 0
    with (
      flagsaver.flagsaver(**settings),
      mock.patch.object(sys, 'argv', ['launch.py']),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      try:
        launch.main(*command)
      except SystemExit as stop:
        code = stop.code
    return code, out.getvalue().splitlines(), err.getvalue().splitlines()

  def script(self, text, name='train.py'):
    path = self.root / name
    path.write_text(textwrap.dedent(text))
    return str(path)

  def test_each_line_has_its_process_and_its_stream(self):
    code, out, err = self.launch('sh', '-c', 'echo "a $2"; echo b >&2')
    self.assertEqual(code, 0)
    self.assertCountEqual(out, ['[0] a --process_id=0', '[1] a --process_id=1'])
    self.assertCountEqual(err, ['[0] b', '[1] b'])

  def test_all_processes_get_one_address_which_a_program_can_listen_on(self):
    script = 'echo $0 $1; echo $JAX_NUM_CPU_DEVICES'
    _, out, _ = self.launch('sh', '-c', script, devices_per_process=3)
    addresses = {line[4:] for line in out if 'coordinator' in line}
    self.assertLen(addresses, 1)
    self.assertRegex(
      addresses.pop(),
      r'^--coordinator_address=127.0.0.1:\d+ --num_processes=2$',
    )
    self.assertCountEqual([x for x in out if x[4:] == '3'], ['[0] 3', '[1] 3'])

  def test_one_that_fails_ends_all_and_its_error_is_last(self):
    script = """
    [ $2 = --process_id=1 ] || exec sleep 60
    echo 'train.py: error: no memory' >&2
    echo 'bye' >&2
    exit 5
    """
    before = time.monotonic()
    code, _, err = self.launch('sh', '-c', script)
    self.assertLess(time.monotonic() - before, 30)
    self.assertEqual(code, 5)
    self.assertEqual(
      err[-1],
      'launch.py: error: process 1 ended with exit code 5: '
      'train.py: error: no memory',
    )

  def test_others_have_time_to_save_and_are_killed_after_it(self):
    script = """
    [ $2 = --process_id=1 ] && exit 9
    trap '' TERM
    echo saved > saved
    while :; do sleep 0.02; done
    """
    with mock.patch.object(launching, '_LAST_SECONDS', 0.1):
      code, _, _ = self.launch('sh', '-c', script)
    self.assertEqual(code, 9)  # not 137, of the killed one
    self.assertEqual((self.root / 'saved').read_text(), 'saved\n')

  def test_a_failure_outranks_a_stop_that_came_first(self):
    script = '[ $2 = --process_id=0 ] && exit 75; sleep 0.1; exit 3'
    code, _, _ = self.launch('sh', '-c', script)
    self.assertEqual(code, 3)

  def test_starts_again_and_resumes_where_the_run_is(self):
    program = self.script(
      """
      import os, pathlib, signal, sys
      path = pathlib.Path(sys.argv[1].partition('=')[2], 'config.json')
      resume = path.exists()
      if sys.argv[-1] == '--process_id=1':
        print(resume, '--resume' in sys.argv)
        sys.exit()
      if not resume:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
      """
    )
    code, out, err = self.launch(program, '--workdir=run', max_restarts=3)
    self.assertEqual(code, 0)
    self.assertEqual(out[-1], '[1] True True')
    self.assertEqual(
      err,
      [
        'launch.py: process 0 ended with exit code 137 (SIGKILL); starting '
        'all processes again, 2 restarts left'
      ],
    )

  def test_a_killed_process_is_a_lost_one(self):
    script = '[ $2 = --process_id=1 ] && kill -9 $$; sleep 60'
    code, _, err = self.launch('sh', '-c', script, max_restarts=1)
    self.assertEqual(code, exit_codes.LOST)
    self.assertRegex(err[-1], 'process 1 ended with exit code 137 .SIGKILL.$')

  def test_ends_when_no_restart_is_left(self):
    script = 'echo x >> starts; exit 77'
    code, _, err = self.launch('sh', '-c', script, max_restarts=2)
    self.assertEqual(code, 77)
    self.assertEqual(len((self.root / 'starts').read_text()), 2 * 2 * 3)
    self.assertRegex(err[-1], 'process . ended with exit code 77$')

  def test_an_explained_error_is_not_repeated(self):
    script = 'echo x >> starts; exit 1'
    code, _, _ = self.launch('sh', '-c', script, max_restarts=2)
    self.assertEqual((code, len((self.root / 'starts').read_text())), (1, 4))

  def test_chooses_a_directory_only_where_none_is_given(self):
    file = self.script('--seed=1\n--workdir=mine\n', 'a.flags')
    for args in (['--workdir=mine'], ['--workdir', 'mine', '--seed=2'],
                 [f'--flagfile={file}']):  # fmt: skip
      program = ['train.py', *args]
      self.assertEqual(launch._with_workdir(program), program)
      self.assertEqual(launch._workdir(program), 'mine')
    *_, added = launch._with_workdir(['train.py', '--seed=2'])
    self.assertRegex(added, r'^--workdir=runs/\d+-\d+-launch$')

  @parameterized.parameters('SIGTERM', 'SIGHUP')
  def test_a_signal_is_passed_on_once_to_each(self, name):
    script = SAVES.replace('TERM', name.removeprefix('SIG'))
    process = self.start(script)
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    self.assertCountEqual(out.splitlines(), ['[0] saved', '[1] saved'])
    self.assertEqual(process.returncode, 75)

  def test_a_second_signal_kills_all(self):
    process = self.start("trap '' TERM; echo ready; sleep 60; echo alive")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.15)  # two within 0.1 s count as one
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    self.assertEqual((out, process.returncode), ('', 75))

  def start(self, script):
    process = subprocess.Popen(
      [sys.executable, '-c', PROGRAM, script],
      env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[1])},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    for _ in range(2):
      self.assertRegex(process.stdout.readline(), r'^\[.\] ready\n')
    return process

  def fake_ssh(self):
    ssh = self.root / 'bin' / 'ssh'
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    self.log = self.root / 'ssh.log'
    path = f'{ssh.parent}:{os.environ["PATH"]}'
    self.enterContext(
      mock.patch.dict(os.environ, PATH=path, SSH_LOG=str(self.log), JAX_A='b c')
    )

  def test_hosts_are_reached_by_ssh(self):
    self.fake_ssh()
    (self.root / 'there').mkdir()
    script = 'echo $(basename $PWD) "$JAX_A" $1 $2 $0; exit 4'
    code, out, _ = self.launch(
      'sh', '-c', script, num_processes=None, hosts=['me@a', 'b'],
      remote_directory=str(self.root / 'there'),
    )  # fmt: skip
    self.assertEqual(code, 4)
    address = '--coordinator_address=a:8476'
    self.assertCountEqual(
      out,
      [
        f'[{i}] there b c --num_processes=2 --process_id={i} {address}'
        for i in range(2)
      ],
    )
    lines = self.log.read_text().splitlines()
    hosts = {line.partition(':')[0] for line in lines}
    self.assertEqual(hosts, {'me@a', 'b'})

  def test_processes_on_hosts_are_signaled_by_ssh(self):
    self.fake_ssh()
    script = """
    [ $2 = --process_id=1 ] && { sleep 0.2; exit 9; }
    trap 'echo ended; exit 0' TERM
    while :; do sleep 0.02; done
    """
    code, out, _ = self.launch(
      'sh', '-c', script, num_processes=None, hosts=['a', 'b']
    )
    self.assertEqual((code, out), (9, ['[0] ended']))
    self.assertRegex(self.log.read_text(), r'(?m)^a: kill -s TERM \d+$')

  def test_gpus_are_shared_equally(self):
    def shared(gpus, number, **given):
      with (
        mock.patch.object(jobs, 'visible_gpus', return_value=gpus),
        mock.patch.dict(os.environ),
        flagsaver.flagsaver(**given),
      ):
        os.environ.pop('JAX_PLATFORMS', None)
        found = launch._environments(number)
        return [one.get('CUDA_VISIBLE_DEVICES') for one in found]

    self.assertEqual(shared(['4', '5', '6', '7'], 2), ['4,5', '6,7'])
    self.assertEqual(shared(['0', '1', '2'], 2), ['0', '1'])
    self.assertEqual(shared([], 2), [None, None])
    with self.assertRaisesRegex(ValueError, 'require 3, got 2; start fewer'):
      shared(['0', '1'], 3)
    with self.assertRaisesRegex(ValueError, 'require 4, got 2; start fewer'):
      shared(['0', '1'], 2, devices_per_process=2)

  @parameterized.parameters(
    ((), {}, 'expected a program after --, such as'),
    (('a',), {'num_processes': None}, 'pass --num_processes, or --hosts'),
    (('a',), {'num_processes': 0}, '--num_processes must be >= 1, got 0'),
    (('a',), {'max_restarts': -1}, '--max_restarts must be >= 0, got -1'),
    (('a',), {'devices_per_process': 0}, '--devices_per_process must be >= 1'),
    (('a',), {'hosts': ['x']}, '--num_processes=2 must be one for each of'),
    (('no_such_program',), {}, 'no_such_program'),
  )
  def test_wrong_use_is_one_line(self, command, given, message):
    try:
      code, _, err = self.launch(*command, **given)
    except OSError as error:  # which cli.run prints
      code, err = 1, [str(error)]
    self.assertEqual((code, len(err)), (1, 1))
    self.assertIn(message, err[0])

  def test_flags_after_the_program_are_not_of_the_launch(self):
    argv = ['launch.py', 'train.py', '--help']
    self.assertIn('--max_restarts', help_pages.answer(argv, launch.main))
    argv.insert(1, '--')
    self.assertIsNone(help_pages.answer(argv, launch.main))
    found = help_pages.explain_unknown_flag('lr', ['a', 'train.py', '--lr=4'])
    self.assertEndsWith(found, '; put -- before train.py')

  def test_resuming_is_by_the_same_launch(self):
    variables = signals.launched_by(
      ['python', 'launch.py', '--num_processes=2', '--'],
      ['train.py', '--algorithm=ssgd'],
    )
    with mock.patch.dict(os.environ, variables):
      self.assertTrue(signals.is_launched())
      start = 'python launch.py --num_processes=2 -- train.py'
      self.assertEqual(signals.again('--resume'), f'{start} --resume')
      self.assertEqual(signals.again(), f'{start} --algorithm=ssgd')
    self.assertFalse(signals.is_launched())
    self.assertLen(json.loads(next(iter(variables.values()))), 2)


class ErrorLineTest(parameterized.TestCase):
  @parameterized.parameters(
    ([], ''),
    (['step 1', ' '], 'step 1'),
    (['a.py: process 1: error: b', 'c'], 'a.py: process 1: error: b'),
    (['W1 x', 'F1130 00:52:10 client.h: dead', '@ 0x7'],
     'F1130 00:52:10 client.h: dead'),
    (['Traceback (most recent call last):', '  f', 'KeyError: 1', '',
      'During handling of the above exception:', '',
      'Traceback (most recent call last):', '  g', 'ValueError: 2', 'end'],
     'ValueError: 2'),
  )  # fmt: skip
  def test_names_the_cause(self, lines, expected):
    self.assertEqual(launching.error_line(lines), expected)


if __name__ == '__main__':
  absltest.main()
