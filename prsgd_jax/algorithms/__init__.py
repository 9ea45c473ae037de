"""One function per paper: an equation, a reference, one `chain`.

Notation: N replicas, x_i the local models, G_i a stochastic gradient at x_i,
gamma the step size, t = step + 1. Three orders of mixing and stepping are in
the literature and are different sequences; the chain shows which one a paper
has:

  A  x_i <- sum_j W_ij x_j - gamma G(x_i)       gradient, sync, local_update
  B  y_i = sum_j W_ij x_j; x_i <- y_i - gamma G(y_i)
                                                sync, gradient, local_update
  C  x_i <- sum_j W_ij (x_j - gamma G(x_j))     gradient, local_update, sync

Two choices that the papers leave open are explicit arguments. `what` names the
fields that an average covers: by default the parameters alone; with
'opt_state' momentum buffers are averaged too (Yu, Jin, Yang 2019), with
'model_state' batch statistics. `reset` is the schedule at which the optimizer's
buffers start anew after an average: by default never, momentum stays local.

Coupled L2 belongs to the loss, so that it is taken where the gradient is;
decoupled weight decay belongs to `tx`, which in order A acts on the mixed
point.
"""

from prsgd_jax.algorithms.averaging import (
  k_avg,
  local_sgd,
  one_shot_averaging,
  pr_sgd,
  ssgd,
)
from prsgd_jax.algorithms.decentralized import d_psgd
from prsgd_jax.algorithms.hierarchical import hier_avg

__all__ = (
  'd_psgd',
  'hier_avg',
  'k_avg',
  'local_sgd',
  'one_shot_averaging',
  'pr_sgd',
  'ssgd',
)
