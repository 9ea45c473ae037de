"""The rows of the law table for any number of replicas, and their invariants.

`makes(n)` fits the arguments of a row to n replicas: lists with a number for
each replica, matrices and graphs. A row that still does not fit refuses n with
its own message.
"""

import networkx as nx
import numpy as np

import prsgd_jax as pr
from tests import reference
from tests.rows import (
  LEARNING_RATE,
  LOCAL_STEPS,
  PLAIN,
  SGD,
  TABLE,
  corrected,
  federated,
)
from tests.rows.decentralized import SPEEDS

# Numbers of replicas between which a checkpoint is resized.
SIZES = (1, 2, 4, 8)


def directed(n):
  return pr.graphs.graph(reference.random_column_stochastic(n))


def _heterogeneous(n, **options):
  return pr.pr_sgd_heterogeneous(SGD, local_steps=LOCAL_STEPS[:n], **options)


def _sgp_local(n):
  return pr.sgp(SGD, mixing=directed(n))


# Rows whose arguments depend on N -> n -> the algorithm.
FITTED = {
  'heterogeneous': _heterogeneous,
  'heterogeneous_alike': lambda n: pr.pr_sgd_heterogeneous(
    SGD, local_steps=(4,) * n
  ),
  'd_psgd_dense': lambda n: pr.d_psgd(
    SGD, mixing=pr.mixing.dense(reference.random_doubly_stochastic(n))
  ),
  'd_psgd_dense_mean': lambda n: pr.d_psgd(
    SGD, mixing=pr.mixing.dense(np.full((n, n), 1 / n))
  ),
  'd_psgd_matcha': lambda n: pr.d_psgd(
    SGD, mixing=pr.graphs.matcha(nx.path_graph(n), budget=0.5)
  ),
  'sgp_directed': _sgp_local,
  'sgp_directed_3': lambda n: pr.sgp(SGD, mixing=directed(n), period=3),
  'ad_psgd': lambda n: pr.ad_psgd(SGD, speeds=SPEEDS[:n]),
  'ad_psgd_equal': lambda n: pr.ad_psgd(SGD, speeds=[3] * n),
  'relay_sgd': lambda n: pr.relay_sgd(SGD),
  'slowmo_sgp': lambda n: pr.slowmo(
    _sgp_local(n),
    learning_rate=LEARNING_RATE,
    period=4,
    slow_learning_rate=0.8,
    slow_momentum=0.6,
  ),
  'diloco_sgp': lambda n: pr.diloco(_sgp_local(n), period=4),
  'delayed_nesterov': lambda n: pr.delayed_nesterov(
    SGD, speeds=SPEEDS[:n], period=3, buffer_size=3, activation=0.2
  ),
  'delayed_nesterov_1': lambda n: pr.delayed_nesterov(
    SGD,
    speeds=SPEEDS[:n],
    period=3,
    buffer_size=1,
    outer_learning_rate=0.1,
    outer_momentum=0.5,
  ),
  'fedavg': lambda n: pr.fedavg(
    SGD, period=4, participation=3 / 8, weights=federated.WEIGHTS[:n]
  ),
  'fedavg_weighted_everyone': lambda n: pr.fedavg(
    SGD, period=4, weights=federated.WEIGHTS[:n]
  ),
  'fedavg_codes': lambda n: pr.fedavg(
    SGD,
    period=4,
    participation=3 / 8,
    weights=federated.WEIGHTS[:n],
    average=federated._codes(),
  ),
  'fednova': lambda n: pr.fednova(SGD, local_steps=LOCAL_STEPS[:n]),
  'decoupled_diloco': lambda n: pr.decoupled_diloco(
    SGD, local_steps=LOCAL_STEPS[:n], quorum=max(n // 2, 1)
  ),
  'easgd': lambda n: pr.easgd(SGD, period=3, alpha=0.9 / n),
  'eamsgd': lambda n: pr.eamsgd(PLAIN, period=3, alpha=0.9 / n, momentum=0.9),
  'weighted': lambda n: pr.weighted_averaging(
    SGD, period=4, weights=corrected.WEIGHTS[:n]
  ),
  'weighted_equally': lambda n: pr.weighted_averaging(
    SGD, period=4, weights=(3,) * n
  ),
  'wp_sgd': lambda n: pr.wp_sgd(
    SGD, local_steps=LOCAL_STEPS[:n], contraction=0.8
  ),
}


def make(name, n):
  """The algorithm of a row for n replicas; it may refuse n in its init."""
  if name.startswith('faults_'):
    return TABLE[name].make(n)  # with the faults of n replicas
  return FITTED[name](n) if name in FITTED else TABLE[name].make()
