"""T1: the figure of PR-SGD, loss and accuracy against epochs and time.

The learning rate is the best one of synchronous SGD, and drops as in the paper.
At a much lower rate even one average at the end passes.
"""

import numpy as np

from experiments.papers import speed
from experiments.papers.t01_pr_sgd import figure, judging, mlp, runs, tuned
from experiments.papers.target import Outcome, Setting, Target


def _measure(setting: Setting) -> Outcome:
  """Train with every interval, and with SSGD."""
  if setting.scale != 'cpu':
    seeds = runs.FULL_SEEDS if setting.scale == 'full' else (0,)
    tasks = {
      'ResNet-20, CIFAR-10, loss of the replicas': runs.full(setting, seeds)
    }
    claims = [
      c
      for task in tasks.items()
      for c in judging.claims(
        *task, runs.FULL_NETWORK, share=speed.BEFORE_DROPS
      )
    ]
    return Outcome(claims, {'tasks': tasks}, seeds)
  trained = mlp.train(setting)
  by_rate = trained.by_rate
  best = next(iter(by_rate))
  # The MLP comes first because its rate is tuned.
  tasks = {
    judging.MLP_TASK: by_rate[best],
    judging.LENET_TASK: runs.lenet(setting),
  }
  relative = {
    rate: {
      label: judging.relative_cost(
        histories,
        label,
        'epoch',
        speed.BEFORE_DROPS,
        judging.UNIT,
      ).tolist()
      for label in histories
      if label != runs.SSGD
    }
    for rate, histories in by_rate.items()
  }
  # At the best rate and at those next to it. At the lowest one all pass.
  at_rates = [
    claim
    for rate in list(by_rate)[: tuned.PLACE + 1]
    for claim in judging.claims(
      judging.MLP_TASK,
      by_rate[rate],
      runs.NETWORK,
      share=speed.BEFORE_DROPS,
      rates=(float(rate), float(best)),
    )
  ]
  claims = [
    *at_rates,
    tuned.claim(trained),
    judging.rates_claim(relative),
    *judging.claims(
      judging.LENET_TASK, tasks[judging.LENET_TASK], runs.NETWORK
    ),
  ]
  # JSON has no infinity.
  shown = {
    rate: {
      label: [v if np.isfinite(v) else None for v in each]
      for label, each in own.items()
    }
    for rate, own in relative.items()
  }
  data = {
    'tasks': tasks,
    'relative': shown,
    'relative_to': judging.UNIT,
    'losses': tuned.curves(trained),
  }
  return Outcome(claims, data, mlp.SEEDS)


TARGET = Target(
  name='t01_pr_sgd',
  title='PR-SGD against synchronous SGD, by epochs and by time',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629), the figure of the experiment',
  measure=_measure,
  draw=figure.draw,
  scales=('cpu', 'full'),
  pieces=runs.pieces,
)
