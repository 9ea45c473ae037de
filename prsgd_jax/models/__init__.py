"""MODELS: flax modules, and their losses as pure functions.

One file per module. `classification` and `language_modeling` turn a module into
the `loss_fn` and `eval_fn` of a trainer. No training code is here.
"""

from prsgd_jax.models.lenet import LeNet5
from prsgd_jax.models.lstm import LSTMClassifier
from prsgd_jax.models.mlp import MLP
from prsgd_jax.models.resnet import ResNet18, ResNet20
from prsgd_jax.models.transformer import Transformer

__all__ = (
  'MLP',
  'LSTMClassifier',
  'LeNet5',
  'ResNet18',
  'ResNet20',
  'Transformer',
)
