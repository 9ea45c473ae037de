"""The table of algorithms that the laws are crossed with, by family."""

from tests.rows import (
  averaging,
  compressed,
  corrected,
  decentralized,
  delayed,
  diloco,
  dion,
  exact,
  faults,
  federated,
  hierarchical,
  outer,
  robust,
  sparse,
)
from tests.rows.row import (
  LEARNING_RATE,
  LOCAL_STEPS,
  MOMENTUM,
  PLAIN,
  SGD,
  N,
  Row,
  T,
)

TABLE = {
  **averaging.TABLE,
  **hierarchical.TABLE,
  **decentralized.TABLE,
  **exact.TABLE,
  **outer.TABLE,
  **diloco.TABLE,
  **dion.TABLE,
  **delayed.TABLE,
  **federated.TABLE,
  **robust.TABLE,
  **corrected.TABLE,
  **compressed.TABLE,
  **sparse.TABLE,
  **faults.TABLE,
}

__all__ = (
  'LEARNING_RATE',
  'LOCAL_STEPS',
  'MOMENTUM',
  'PLAIN',
  'SGD',
  'TABLE',
  'N',
  'Row',
  'T',
)
