"""How long the tests of random inputs search."""

import os

import hypothesis


def search(examples):
  """Return settings for a number of examples, the same ones in every run.

  A long search for others: FUZZ_EXAMPLES=2000 pytest tests/random_*_test.py
  """
  return hypothesis.settings(
    max_examples=int(os.environ.get('FUZZ_EXAMPLES', examples)),
    deadline=None,
    derandomize='FUZZ_EXAMPLES' not in os.environ,
    database=None,
    # Each try may compile for a second, and the cases are small as they are.
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
