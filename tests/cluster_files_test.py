"""Tests of `experiments/cluster`: files to copy for a cluster.

The commands of the cluster are shell scripts that write down what they are
given, and call it.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile

from absl import flags
from absl.testing import absltest, parameterized
import yaml

from experiments import train
from experiments.running.process import exit_codes

del train  # whose flags the files pass

CLUSTER = pathlib.Path(__file__).parents[1] / 'experiments' / 'cluster'
# Two tasks, as SLURM starts them.
SRUN = """#!/bin/bash
shift  # --wait
for i in 0 1; do SLURM_PROCID=$i "$@" || code=$?; done
exit ${code:-0}
"""
PYTHON = """#!/bin/bash
printf '%s\\n' "$SLURM_PROCID $PWD" "$@" >> "$LOG"
exit $CODE
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >> "$LOG"
"""
# Runs the command as the login shell of a host.
GCLOUD = """#!/bin/bash
echo "${*:1:6}" >> "$LOG"
bash -c "${8#--command=}"
"""


class ClusterFilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(contextlib.chdir(self.root))
    self.log = self.root / 'log'

  def call(self, name, *args, code=0, **variables):
    """Return the exit code and the lines that the stand-ins wrote."""
    self.log.write_text('')
    stands_in = {'srun': SRUN, 'scontrol': SCONTROL, 'gcloud': GCLOUD,
                 '.venv/bin/python': PYTHON}  # fmt: skip
    for program, text in stands_in.items():
      path = self.root / 'bin' / program
      path.parent.mkdir(exist_ok=True, parents=True)
      path.write_text(text)
      path.chmod(0o755)
    environment = {
      **os.environ, 'PATH': f'{self.root}/bin:{os.environ["PATH"]}',
      'LOG': str(self.log), 'CODE': str(code), **variables,
    }  # fmt: skip
    done = subprocess.run(
      ['bash', str(CLUSTER / name), *args],
      env=environment,
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.stderr, '')
    return done.returncode, self.log.read_text().splitlines()

  def slurm(self, code=0):
    return self.call(
      'slurm.sbatch', '--algorithm=pr_sgd', '--algorithm_options=a=b c',
      code=code, SLURM_JOB_ID='7', PYTHON=f'{self.root}/bin/.venv/bin/python',
    )  # fmt: skip

  def test_slurm_starts_every_task_and_resumes(self):
    task = ['experiments/train.py', '--distributed=auto',
            '--workdir=runs/slurm-7', '--algorithm=pr_sgd',
            '--algorithm_options=a=b c']  # fmt: skip
    here = os.getcwd()
    expected = [f'0 {here}', *task, f'1 {here}', *task]
    self.assertEqual(self.slurm(), (0, expected))
    run = self.root / 'runs' / 'slurm-7' / 'config.json'
    run.parent.mkdir(parents=True)
    run.touch()
    expected = [f'0 {here}', *task, '--resume', f'1 {here}', *task, '--resume']
    self.assertEqual(self.slurm(), (0, expected))

  @parameterized.parameters(0, 1, 75, 76, 77, 130)
  def test_slurm_requeues_by_the_exit_code(self, code):
    found, lines = self.slurm(code)
    self.assertEqual(found, code)
    requeued = 'scontrol requeue 7' in lines
    self.assertEqual(requeued, code in exit_codes.REQUEUE)

  def test_tpu_starts_every_host_and_resumes(self):
    directory = self.root / 'bin'
    settings = {'TPU': 'mine', 'ZONE': 'z', 'DIRECTORY': str(directory),
                'RUNS': str(self.root / 'my runs'), 'NAME': 'a'}  # fmt: skip
    args = ('--algorithm=pr_sgd', '--algorithm_options=a=b c')
    expected = [
      'compute tpus tpu-vm ssh mine --zone=z', f' {directory.resolve()}',
      'experiments/train.py', '--distributed=auto',
      f'--workdir={self.root}/my runs/a', *args,
    ]  # fmt: skip
    code, lines = self.call('tpu.sh', *args, **settings)
    self.assertEqual((code, lines), (0, expected))
    run = self.root / 'my runs' / 'a' / 'config.json'
    run.parent.mkdir(parents=True)
    run.touch()
    code, lines = self.call('tpu.sh', *args, **settings)
    self.assertEqual((code, lines), (0, [*expected, '--resume']))

  def test_kubernetes_pods_meet_and_codes_are_ours(self):
    service, job = yaml.safe_load_all((CLUSTER / 'gke.yaml').read_text())
    spec = job['spec']
    pod = spec['template']['spec']
    name = job['metadata']['name']
    self.assertEqual(service['spec']['selector'], {'job-name': name})
    self.assertEqual(pod['subdomain'], service['metadata']['name'])
    (container,) = pod['containers']
    command = container['args'][0]
    address = f'--coordinator_address={name}-0.{pod["subdomain"]}:'
    self.assertIn(address, command)
    self.assertIn(f'--num_processes={spec["completions"]} ', command)
    self.assertEqual(spec['completions'], spec['parallelism'])
    rules = {
      rule['action']: rule['onExitCodes']
      for rule in spec['podFailurePolicy']['rules']
      if 'onExitCodes' in rule
    }
    self.assertEqual(rules['FailJob']['values'], [exit_codes.ERROR])
    self.assertEqual(rules['Ignore']['values'], [*exit_codes.REQUEUE])
    self.assertEqual(rules['Ignore']['containerName'], container['name'])
    subprocess.run(['bash', '-n', '-c', command], check=True)

  @parameterized.parameters('slurm.sbatch', 'gke.yaml', 'tpu.sh')
  def test_flags_of_train_exist(self, name):
    text = (CLUSTER / name).read_text()
    _, _, given = text.partition('experiments/train.py')
    given, _, _ = given.partition('\n\n')
    found = re.findall(r'--(\w+)', given)
    self.assertContainsSubset(found, list(flags.FLAGS))
    self.assertIn('workdir', found)


if __name__ == '__main__':
  absltest.main()
