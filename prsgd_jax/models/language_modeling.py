"""Language models: a flax module as pure functions that the engine calls."""

from flax import linen as nn

from prsgd_jax.models.classification import Task, cross_entropy


def language_model(
  model: nn.Module, *, weight_decay: float = 0.0, label_smoothing: float = 0.0
) -> Task:
  """Return the task of predicting the next character, in nats per character.

  The exponential of the loss is the perplexity.

  Args:
    model: a flax module, called as `model(x, train=...)`, from
      int[batch, length] to logits `[batch, length, vocabulary]`. Logits at
      position t may depend only on positions 0 .. t.
    weight_decay: strength of coupled L2, (weight_decay / 2) |x|^2 over all
      parameters, >= 0. It is not included in the reported loss. Default: 0.
    label_smoothing: fraction of a label that is spread over all characters, in
      [0, 1). It does not change the reported loss. Default: 0.

  Returns:
    The task, for batches `{'text': int[batch, length + 1]}`. The model reads
    all characters but the last and predicts all but the first.
  """
  return cross_entropy(
    model,
    lambda batch: batch['text'][:, :-1],
    lambda batch: batch['text'][:, 1:],
    weight_decay=weight_decay,
    label_smoothing=label_smoothing,
  )
