"""Measures of the averaged model at each evaluation of a run.

Its loss on training examples is measured without augmentation. All measures
exist with the batch statistics estimated again on training batches, and with
the mean of the replicas' statistics.
"""

from collections.abc import Callable

from experiments.running.execution.parts import Parts
from prsgd_jax.data.datasets import Dataset
from prsgd_jax.engine.run_state import State

# Training examples of the loss, the first ones; their order is random.
NUM_OBSERVED = 5000


def observed(
  parts: Parts, dataset: Dataset, num_observed: int = NUM_OBSERVED
) -> Parts:
  """Return the parts of a run with the measures of its averaged model.

  Its records get `train_loss`, and with the mean of the replicas' batch
  statistics `train_loss_mean_statistics`, `test_loss_mean_statistics` and
  `test_accuracy_mean_statistics`.

  Args:
    parts: the run.
    dataset: its data.
    num_observed: number of training examples. Default: `NUM_OBSERVED`.
  """
  train = {name: x[:num_observed] for name, x in dataset.train.items()}
  return parts._replace(measure=_measure(parts, train))


def _measure(
  parts: Parts, train: object
) -> Callable[[State], dict[str, float]]:
  evaluate = parts.trainer.evaluate
  again = parts.data if parts.reestimate else None

  def measure(state: State) -> dict[str, float]:
    estimated = evaluate(state, train, reestimate=again)
    seen, unseen = evaluate(state, train), evaluate(state, parts.test)
    return {
      'train_loss': estimated['loss'],
      'train_loss_mean_statistics': seen['loss'],
      'test_loss_mean_statistics': unseen['loss'],
      'test_accuracy_mean_statistics': unseen['accuracy'],
    }

  return measure
