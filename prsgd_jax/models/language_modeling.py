"""A flax language model as the pure functions that the engine knows."""

from flax import linen as nn

from prsgd_jax.models.classification import Task, cross_entropy


def language_model(
  model: nn.Module, *, weight_decay: float = 0.0, label_smoothing: float = 0.0
) -> Task:
  """Cross-entropy of the next character, in nats per character.

  Its exponential is the perplexity.

  Args:
    model: called as `model(x, train=...)`, maps int[batch, length] to logits
      `[batch, length, vocabulary]`; those at position t may depend on what
      stands at 0 .. t only.
    weight_decay: as of `classification.cross_entropy`.
    label_smoothing: as of `classification.cross_entropy`.

  Returns:
    The task, for batches `{'text': int[batch, length + 1]}`: all but the last
    character are read, all but the first predicted.
  """
  return cross_entropy(
    model,
    lambda batch: batch['text'][:, :-1],
    lambda batch: batch['text'][:, 1:],
    weight_decay=weight_decay,
    label_smoothing=label_smoothing,
  )
