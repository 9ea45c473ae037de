"""Random command lines: each is accepted, or rejected in one line."""

import functools
import pathlib
import resource
import tempfile
from unittest import mock

from absl import flags
from absl.testing import absltest
import hypothesis
from hypothesis import strategies as st

from experiments import costs, train
from experiments.planning import plans
from experiments.running.execution import experiment, runs
from experiments.running.flags import algorithm_flags, config
from tests import binaries, fuzzing

# Those that need nothing prepared.
PRESETS = sorted(
  pathlib.Path(experiment.__file__).parents[2].glob('presets/digits_*.flags')
)
preset_runs = costs.preset_runs
# A command line may ask for any amount; this many bytes more are a failure.
MEMORY = 8 * 2**30

INTEGERS = st.one_of(
  st.integers(0, 9),
  st.sampled_from(
    [-1, 16, 1000, 10**6, 2**31 - 1, 2**31, 2**32, 2**63, 10**30]
  ),
  st.integers(),
)
FLOATS = st.one_of(
  st.sampled_from(
    [0.0, -0.0, -1.0, 0.1, 0.5, 1.0, 2.0, 1e-320, 1e30, 1e308, -1e308]
  ),
  st.floats(),  # nan and inf among them
)
_WORDS = r"""
ring mean torus:3 torus:0 erdos_renyi:0.5 erdos_renyi:nan erdos_renyi
group_mean:4 group_mean:0 top_k:0.1 top_k:2 top_k:nan feedback:top_k:0.1
feedback signs levels:4 every:4 every:0 every:1e30 at:1+2 at: at:-1 at:1e30
at:1e9 intervals:1+2 intervals:1e12 doubling:4 doubling:0 doubling:1e308
with_probability:0.5 with_probability:nan qsr:0.1:2 qsr:nan:2 qsr:1e308:1
post_local:2:4 post_local:1e12:4 linear_growth:1:0 linear_growth:1:1e12
nesterov:0.7 adam:nan sgd:inf sgp:ring k_avg:2 k_avg:0 none None mlp lenet
digits text theory 1,2 1+2 1,2,3,4,5,6,7,8 8+8+8+8+8+8+8+8 1,,2 1,nan
1,inf,0 : :: , + ++ 1: :1 a:b:c [1] {} . .. ~ %s \ é
"""
WORDS = _WORDS.split()
TEXTS = st.one_of(
  st.sampled_from(['', ' ', 'x' * 300, *WORDS]),
  st.text(max_size=8).filter(lambda text: '\0' not in text),
)


def _values(flag):
  """Values of the flag's type, and now and then any other."""
  kind = flag.flag_type()
  if 'enum' in kind:
    fitting = st.sampled_from(flag.parser.enum_values)
  elif kind == 'bool':
    fitting = st.booleans()
  else:
    fitting = {'int': INTEGERS, 'float': FLOATS}.get(kind, TEXTS)
  return st.integers(0, 19).flatmap(lambda n: fitting if n else TEXTS)


def _preset(path):
  """{flag: value} of a preset."""
  lines = path.read_text().splitlines()
  pairs = [line.removeprefix('--').partition('=') for line in lines]
  return {name: value for name, _, value in pairs if not name.startswith('#')}


def _fitting(module, algorithm):
  """The flags of a program that an algorithm does not refuse outright."""
  shown = {
    f.name for f in flags.FLAGS.get_key_flags_for_module(module.__name__)
  }
  own = {
    algorithm_flags.RENAMED.get(name, name)
    for name in algorithm_flags.keywords(algorithm)
  }
  others = set(config.OPTIONS) - {'when', 'local', 'buffers', 'batch_stats'}
  left_out = {'workdir', 'data_dir', 'resume', 'run', 'algorithm', 'dataset'}
  return sorted(shown - (others - own) - left_out)


@st.composite
def command_lines(draw, module):
  """A preset of the digits or a text, and some flags with any values."""
  path = draw(st.sampled_from(PRESETS))
  algorithm = _preset(path).get('algorithm', 'pr_sgd')
  names = st.sampled_from(_fitting(module, algorithm))
  given = [
    (name, draw(_values(flags.FLAGS[name])))
    for name in draw(st.lists(names, max_size=3, unique=True))
  ]
  return [
    f'--flagfile={path}',
    '--num_steps=40',
    *(f'--{name}={value}' for name, value in given),
  ]


def own(path, num_replicas):
  """The run of one preset, in place of `costs.preset_runs`."""
  runs = preset_runs(num_replicas)
  # A run that two presets have is that of the first.
  return {path.stem: runs.get(path.stem, 'ssgd')}


class RandomFlagsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    cls.addClassCleanup(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))

  def check(self, binary, args):
    """Raise unless the program works, or refuses in one line."""
    with (
      tempfile.TemporaryDirectory() as root,
      mock.patch.object(runs, 'execute', side_effect=SystemExit(0)),
    ):
      outcome = binaries.call(binary, *args, f'--workdir={root}/run')
    if outcome.code:
      self.assertEqual(outcome.code, 1)
      self.assertEqual(outcome.err.count('\n'), 1, outcome.err)
      self.assertIn('error: ', outcome.err)

  @fuzzing.search(examples=40)
  @hypothesis.given(command_lines(train))
  def test_train(self, args):
    self.check(train, args)

  @fuzzing.search(examples=40)
  @hypothesis.given(command_lines(costs))
  def test_costs(self, args):
    # Of all presets each would take seconds, and `costs_test` has their rows.
    path = pathlib.Path(args[0].removeprefix('--flagfile='))
    with (
      mock.patch.object(costs, 'preset_runs', functools.partial(own, path)),
      # The checks of a plan come before its pilots, which take minutes.
      mock.patch.object(plans, 'make', side_effect=SystemExit(0)),
      mock.patch.object(plans, 'step_timer', lambda *args: lambda: 1e-3),
    ):
      self.check(costs, args)


if __name__ == '__main__':
  absltest.main()
