"""T1 at length: ResNet-20 on images of 32 x 32 pixels, 30 epochs."""

from collections.abc import Sequence

from experiments.hosts.cases import RESNET20
from experiments.papers import t01_long
from experiments.papers.headline import drawing_curves
from experiments.papers.headline import setting as runs
from experiments.papers.pieces import Piece
from experiments.papers.target import Outcome, Setting, Target

EPOCHS = 30
PRIORITY = 20
LABELS = (runs.SSGD, 'I = 4', 'I = 8')
TEXT = (
  'ResNet-20 on CIFAR-10, 8 replicas with batches of 32, 30 epochs (5,850 '
  'steps) instead of 300, momentum 0.9, weight decay 1e-4, rate 0.1, divided '
  'by 10 at epochs 15 and 22.5, crops and flips.'
)


def pieces(setting: Setting) -> Sequence[Piece]:
  """Return the curves of one seed."""
  return runs.large(setting, LABELS, (0,), epochs=EPOCHS, priority=PRIORITY)


def measure(setting: Setting) -> Outcome:
  """Judge the finished curves; train nothing."""
  return t01_long.judged(pieces(setting), TEXT, RESNET20)


TARGET = Target(
  name='t01_long_resnet20',
  title='PR-SGD against synchronous SGD on ResNet-20, a tenth of the length',
  paper='Yu, Yang, Zhu 2019 (arXiv 1807.06629), the figure of the experiment',
  measure=measure,
  draw=drawing_curves.draw,
  scales=('long',),
  pieces=pieces,
  judges_part=True,
  draw_so_far=lambda setting: t01_long.so_far(pieces(setting), RESNET20),
)
