"""The examples in the docstrings of the package."""

import doctest
import importlib
import pkgutil

from absl.testing import absltest, parameterized

import prsgd_jax

MODULES = [
  module.name
  for module in pkgutil.walk_packages(prsgd_jax.__path__, 'prsgd_jax.')
]


class DoctestTest(parameterized.TestCase):
  @parameterized.parameters(*MODULES)
  def test_examples_are_true(self, name):
    module = importlib.import_module(name)
    self.assertEqual(doctest.testmod(module).failed, 0)


if __name__ == '__main__':
  absltest.main()
