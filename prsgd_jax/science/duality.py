"""Activity-weight duality: a change of an input as a change of the weights.

For a dense layer y = x W, an input x' gives the output that x has under dual
weights. So the loss on a test example is the loss on a training example at
other weights, and the gap between the two is a sum over eigen-directions of the
Hessian. In each, it is the product of two determinants of generalization: the
sharpness of the loss, and the spread of the dual weights.
"""

from typing import NamedTuple

import numpy as np

from prsgd_jax.base import Array


class Determinants(NamedTuple):
  """The determinants of generalization, from the sharpest direction on.

  Attributes:
    sharpness: lambda_n, the eigenvalues of the Hessian, float64[P], falling.
    spread: sigma_n^2, the mean square of the dual weights along the
      eigenvectors, float64[P].
  """

  sharpness: np.ndarray
  spread: np.ndarray

  @property
  def gap(self) -> float:
    """The gap of the losses to second order, sum_n lambda_n sigma_n^2 / 2."""
    return float(self.sharpness @ self.spread / 2)


def dual_weights(weights: Array, inputs: Array, others: Array) -> np.ndarray:
  """Return the smallest changes of W under which x acts as x' does.

    dW = x (x' - x)' W / |x|^2,  so that  x'W = x (W + dW)

  Args:
    weights: W, float[D, M], of the layer y = x W.
    inputs: x, float[K, D], such as activities of training examples.
    others: x', float[K, D], such as activities of test examples.

  Returns:
    float64[K, D, M]; NaN where x is 0, which no weights can help.

  Example:
    >>> w, x, other = np.eye(2), np.array([[2.0, 0.0]]), np.array([[2.0, 1.0]])
    >>> dual = dual_weights(w, x, other)
    >>> (x[0] @ (w + dual[0])).tolist()
    [2.0, 1.0]

  Reference:
    Feng, Zhang, Tu 2023, Activity-weight duality in feed-forward neural
    networks reveals two co-determinants for generalization (Nature Machine
    Intelligence; preprint by Feng and Tu, arXiv 2203.10736).
    Not verified: the number of the equation, and its choice among the weights
    with this property.
  """
  w, x, other = (np.asarray(a, np.float64) for a in (weights, inputs, others))
  moved = (other - x) @ w
  with np.errstate(invalid='ignore', divide='ignore'):
    unit = x / (x**2).sum(axis=-1, keepdims=True)
  return unit[:, :, None] * moved[:, None, :]


def determinants(hessian: Array, changes: Array) -> Determinants:
  """Return eigenvalues of the Hessian, and mean squares of changes along them.

  Args:
    hessian: H of the mean training loss with respect to the weights of the
      layer, float[P, P], symmetric.
    changes: changes of these weights, float[K, ...] with P entries each, such
      as `dual_weights` returns.

  Example:
    >>> found = determinants(np.diag([1.0, 3.0]), np.array([[1.0, 2.0]]))
    >>> found.sharpness.tolist(), found.spread.tolist(), found.gap
    ([3.0, 1.0], [4.0, 1.0], 6.5)

  Reference:
    Feng, Zhang, Tu 2023, as for `dual_weights`, the decomposition of the
    generalization loss. Not verified: the number of the equation.
  """
  matrix = np.asarray(hessian, np.float64)
  values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
  flat = np.asarray(changes, np.float64).reshape(len(changes), -1)
  spread = ((flat @ vectors) ** 2).mean(axis=0)
  return Determinants(values[::-1], spread[::-1])
