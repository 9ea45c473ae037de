"""Every shell command of the README, the docs, the presets and the binaries.

Each is called as it is written, once, in a directory of its own. Runs go as far
as their parts, assembled: in place of the training stands what writes the
records of a run. Downloads are small archives, figures are made but not
rendered, and programs that take long are called until their flags are parsed.
"""

import ast
import contextlib
import functools
import importlib
import itertools
import json
import pathlib
import re
import shlex
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from experiments import costs, prepare_data, train
from experiments.running.execution import runs
from experiments.running.flags import tasks
from experiments.running.process import jobs
from experiments.running.records import records
from experiments.tools import figure_files
from prsgd_jax import models
from prsgd_jax.data.datasets import archives
from tests import binaries

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ('README.md', 'BUILD_NOTES.md', 'experiments/README.md',
        'experiments/RESULTS.md', *(
          str(path.relative_to(ROOT))
          for path in sorted((ROOT / 'docs').glob('*.md'))
        ))  # fmt: skip
# Called until their flags are parsed: they take long, or write to the project.
LONG = ('benchmark', 'benchmark_blocks', 'docs_algorithms',
        'execute_notebooks', 'gpu_benchmark', 'hosts_benchmark',
        'hosts_report', 'launch', 'make_gallery', 'plan_check', 'readme',
        'replicas_benchmark', 'reproduce', 'results')  # fmt: skip
preset_runs = costs.preset_runs
PLACES = {
  'NAME': 'digits', 'DIR': 'data', 'FILE': 'cifar', 'DIRECTORY': 'idx',
}  # fmt: skip


def in_docs():
  """Commands in blocks of shell and between backquotes."""
  found = []
  for name in DOCS:
    text = (ROOT / name).read_text()
    for block in re.findall(r'```sh\n(.*?)```', text, re.DOTALL):
      found += lines_of(block)
    found += re.findall(r'(?<!`)`(python (?:-m|exp)[^`]+)`', text)
  return list(dict.fromkeys(found))  # a directory is written once


def in_docstrings():
  found = []
  for path in (ROOT / 'experiments').rglob('*.py'):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ''
    found += lines_of(doc)
  return found


def in_presets():
  found = []
  for path in sorted((ROOT / 'experiments' / 'presets').glob('*.flags')):
    comments = re.findall(r'(?m)^# (.*)$', path.read_text())
    commands = lines_of('\n'.join(comments))
    assert len(commands) == 1, path  # each says how it is run
    found += commands
  return found


def in_makefile():
  text = (ROOT / 'Makefile').read_text()
  found = re.findall(r'\$\(BIN\)/(python (?:experiments|-m experi).*)', text)
  names = {
    '$(RUNS)': 'runs', '$(DATA_DIR)': 'data', '$(SCALE)': 'cpu',
    '$(PIECES)': '', '$(AGAIN_FLAG)': '--again',
  }  # fmt: skip
  for name, value in names.items():
    found = [command.replace(name, value) for command in found]
  return found


def lines_of(text):
  whole = re.sub(r'\\\n\s*', '', text)
  lines = [line.strip() for line in whole.splitlines()]
  return [line for line in lines if line.startswith('python ')]


def splits(name, path):
  """Small arrays in place of what an archive holds."""
  del path
  shape = (32, 32, 3) if name == 'cifar10' else (28, 28, 1)
  label = np.arange(300, dtype=np.int32) % 10
  image = np.zeros((300, *shape), np.uint8)
  image += label[:, None, None, None].astype(np.uint8)
  train_split = {'image': image, 'label': label}
  return {
    'train': train_split,
    'test': {key: x[:20] for key, x in train_split.items()},
  }


def write_run(parts, workdir, intervals, **settings):
  """What a run writes, without training."""
  del intervals, settings
  label = parts.label
  meter = parts.meter
  position = meter.init()
  lines = []
  for step in (1, parts.plan.num_steps):
    position = meter.advance(position, step)
    spent = meter.spent(position)
    lines.append({
      'step': step, 'epoch': parts.epoch(spent.gradients), 'loss': 1 / step,
      'accuracy': 0.5, 'rounds': spent.rounds,
      'bytes_sent': spent.bytes_sent,
      'bytes_by_tier': {}, 'modeled_seconds': float(step),
      'seconds': float(step), 'test_loss': 1.0, 'test_accuracy': 0.5,
      'consensus_distance': 0.1, 'learning_rate': 0.1,
    })  # fmt: skip
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (workdir / records.METRICS).write_text(text)
  summary = {
    'label': label, **lines[-1], 'steps_per_second': None,
    'seconds_to_first_steps': None, 'replicas': str(parts.trainer.mesh),
    'device': 'none', 'cpus': 1, 'jax': '0', 'commit': 'none',
  }  # fmt: skip
  records.write_summary(workdir, summary)
  return summary


def save_blank(figure, path, **settings):
  """In place of rendering, which takes a second a figure."""
  del figure, settings
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (1, 1)).save(path, 'PNG')


def some_presets(num_replicas):
  """The first three; `costs_test` has a row of every algorithm."""
  return dict(itertools.islice(preset_runs(num_replicas).items(), 3))


class CommandsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in ('experiments', 'README.md'):
      (self.root / name).symlink_to(ROOT / name)
    self.count = 0
    self.enterContext(contextlib.chdir(self.root))
    for thing, name, stub in (
      (runs, 'execute', write_run),
      (jobs, 'run_all', binaries.run_jobs),
      (figure_files, 'save', save_blank),
      (costs, 'preset_runs', some_presets),
      (archives, 'download', lambda name, directory: directory),
      (archives, 'read', splits),
    ):
      self.enterContext(mock.patch.object(thing, name, stub))
    self.enterContext(mock.patch.dict(tasks.MODELS, resnet20=models.MLP))

  def check(self, command):
    words = shlex.split(re.sub(r'\[[^]]*\]', '', command), comments=True)
    words = [word.replace('workdir=DIR', 'workdir=runs/a') for word in words]
    names = rf'\b({"|".join(PLACES)})\b'
    words = [re.sub(names, lambda m: PLACES[m[0]], word) for word in words]
    self.assertEqual(words[0], 'python')
    module = words[2] if words[1] == '-m' else words[1].removesuffix('.py')
    name = module.replace('/', '.')
    args = words[3:] if words[1] == '-m' else words[2:]
    if name == 'prsgd_jax':
      name += '.__main__'
      importlib.import_module(name).main()
      return
    if name in (
      # It requires a flag, and so would every program of this process.
      'experiments.tools.benchmark_versions',
      # It has no flags of absl, because it needs nothing but Python.
      'experiments.tools.virtual_hosts',
    ):
      self.assertTrue((ROOT / words[1]).exists())
      return
    binary = importlib.import_module(name)
    if binary is costs:
      # Short runs of a small model: those of all algorithms take minutes.
      args.append('--num_steps=8')
    if binary is train and not re.search('--workdir|--help', command):
      self.count += 1  # because two may begin within a second
      args.append(f'--workdir=runs/{self.count}')
    if not hasattr(binary, 'main'):
      self.assertEmpty(args)  # as readme.py, which has none
      return
    # A plan trains many pilots; planning_test.py makes one.
    if set(name.split('.')) & {*LONG} or '--plan' in args:
      outcome = self.parsed(binary, *args)
    else:
      outcome = binaries.call(binary, *args)
    self.assertEqual(outcome.code, 0, f'{command}\n{outcome.err}')

  def parsed(self, binary, *args):
    """Call a program up to its `main`."""
    stub = functools.wraps(binary.main)(lambda *arguments: None)
    with mock.patch.object(binary, 'main', stub):
      return binaries.call(binary, *args)

  def prepare(self):
    """Make the small data sets that commands take to be there."""
    for name in ('mnist', 'fashion_mnist', 'cifar10'):
      outcome = binaries.call(prepare_data, name, '--data_dir=data')
      self.assertEqual(outcome.code, 0, outcome.err)

  def test_of_the_docs(self):
    commands = in_docs()
    self.assertGreater(len(commands), 20)
    self.assertIn('experiments/sweep.py', ' '.join(commands))
    for command in commands:
      self.check(command)
    self.assertNotEmpty(list(self.root.rglob('*.png')))
    self.assertTrue((self.root / 'report.html').exists())

  def test_of_the_docstrings_and_the_makefile(self):
    for name in ('a', 'b'):
      self.check(
        f'python experiments/train.py --algorithm=ssgd --workdir=runs/{name} '
        f'--seed={int(name, 16)}'
      )
    commands = in_docstrings() + in_makefile()
    self.assertGreater(len(commands), 25)
    known = set(in_docs())
    new = [c for c in dict.fromkeys(commands) if c not in known]
    # The page of a sweep is of one that was made.
    for command in sorted(new, key=lambda c: 'report.py' in c):
      self.check(command)

  def test_of_the_presets(self):
    self.prepare()
    commands = in_presets()
    self.assertGreater(len(commands), 60)
    for command in commands:
      self.check(command)

  def test_a_command_that_fails_is_seen(self):
    for command in (
      'python experiments/train.py --algorithm=foo',
      'python experiments/train.py --perod=4',
      'python experiments/costs.py --model=foo',
      'python -m experiments.reproduce --target=foo',
      'python experiments/plot.py nowhere',
    ):
      with self.assertRaises(AssertionError):
        self.check(command)


if __name__ == '__main__':
  absltest.main()
