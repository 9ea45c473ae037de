"""Run several targets at a time, each as a process of reproduce.

Compiling and small operations are most of a target, and they occupy one core.
"""

from collections.abc import Mapping, Sequence
import pathlib
import sys

from experiments.running.process import jobs, messages


def run_all(
  workdirs: Mapping[str, pathlib.Path],
  program: pathlib.Path,
  arguments: Sequence[str],
  at_once: int,
) -> list[str]:
  """Run targets in order, and print the log of each when it ends.

  Args:
    workdirs: directory of each target by name, which is locked; its log is
      log.txt.
    program: path of reproduce.py.
    arguments: arguments that all targets share.
    at_once: number of targets to run at a time, >= 1.

  Returns:
    A line for each target that failed.

  Raises:
    signals.Stopped: if a signal ended the targets.
    locks.LockError: if the directory of a target cannot be written.
  """
  failed: list[str] = []

  def on_end(job: jobs.Job, code: int) -> None:
    print(job.log.read_text(errors='replace'), end='', flush=True)
    if code:
      failed.append(f'{job.name} ended with exit code {code}; see {job.log}')
      messages.warn(failed[-1])

  def job_of(name: str) -> jobs.Job:
    log = workdirs[name] / 'log.txt'

    def command() -> list[str]:
      log.write_text('')  # because a job appends to it
      own = [f'--targets={name}', '--again', '--at_once=1']
      return [sys.executable, str(program), *own, *arguments]

    return jobs.Job(name, command, log, workdirs[name])

  jobs.run_all(
    [job_of(name) for name in workdirs],
    at_once=at_once,
    gpus=jobs.visible_gpus(),
    on_end=on_end,
    on_wait=lambda running: None,
  )
  return failed
