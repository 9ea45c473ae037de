"""Tests of `experiments/presets`: every run that they name can be built."""

from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from experiments import costs, train
from experiments.running.execution import experiment
from experiments.running.flags import config, run_specs

FLAGS = flags.FLAGS
del train  # whose flags presets may have
PRESETS = sorted(costs.PRESETS.glob('*.flags'))


class PresetsTest(parameterized.TestCase):
  @parameterized.parameters(*PRESETS)
  def test_runs_can_be_built(self, path):
    self.enterContext(flagsaver.flagsaver())
    for flag in FLAGS:
      FLAGS[flag].present = 0
    FLAGS(['train.py', f'--flagfile={path}'])
    if FLAGS.run:
      runs = run_specs.parse_runs(FLAGS.run)
    else:
      runs = [config.from_flags(FLAGS, algorithm=FLAGS.algorithm)]
    for run in runs:
      num_examples = costs.DATASETS[run.dataset].num_examples
      plan = experiment.build_plan(run, num_examples)
      self.assertGreater(plan.num_steps, 0)


if __name__ == '__main__':
  absltest.main()
