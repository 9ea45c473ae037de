"""The documents whose claims the project set out to reproduce.

A claim belongs to a document if its source, or else its study, names one of the
document's papers by the arXiv number. Claims without a study have a reason.
"""

from typing import NamedTuple


class Paper(NamedTuple):
  """A paper of a document.

  Attributes:
    name: authors and year.
    arxiv: its number, which is part of `Target.paper` of its studies.
  """

  name: str
  arxiv: str


class Missing(NamedTuple):
  """A claim without a study.

  Attributes:
    arxiv: the number of its paper.
    text: the claim.
    why: the reason why it was not attempted.
  """

  arxiv: str
  text: str
  why: str


class Document(NamedTuple):
  """A source document: a paper, with its slides or with a list of related work.

  Attributes:
    title: a few words.
    papers: the paper itself, then the related ones.
    missing: claims without a study.
  """

  title: str
  papers: tuple[Paper, ...]
  missing: tuple[Missing, ...] = ()


_SPEECH = 'the speech data are not freely available'
_NOT_RUN = 'written and assembled by the tests (`--scale=full`), not run: no '
_NOT_RUN += 'accelerator was available'

DOCUMENTS = (
  Document(
    'PR-SGD: the paper, and its slides with Algorithms 2 and 3',
    (Paper('Yu, Yang, Zhu 2019', '1807.06629'),),
    (
      Missing(
        '1807.06629',
        'The figure itself: ResNet-20 on CIFAR-10, 8 x 32, 300 epochs (the '
        'number of epochs is recalled, not verified).',
        _NOT_RUN,
      ),
      Missing(
        '1807.06629',
        'Wall-clock time on 8 P100.',
        'times are modeled; `hosts_benchmark.py` measures small networks on '
        'simulated hosts',
      ),
    ),
  ),
  Document(
    'Parallel SGD: when does averaging help? With its related work',
    (
      Paper('Zhang, De Sa, Mitliagkas, Re 2016', '1606.07365'),
      Paper('Jain, Kakade, Kidambi, Netrapalli, Sidford 2018', '1610.03774'),
      Paper('Cheng, Li, Zhang 2017 (WP-SGD)', '1708.04801'),
      Paper('Simpson 2015 (parallel dropout, dither)', '1508.07130'),
      Paper('Povey, Zhang, Khudanpur 2015 (Kaldi)', '1410.7455'),
      Paper('Su, Chen 2015 (averages in DNN training)', '1507.01239'),
    ),
    (
      Missing('1410.7455', 'Word error rates of large speech models.', _SPEECH),
      Missing('1507.01239', 'Word error rates on SWB-300h.', _SPEECH),
    ),
  ),
  Document(
    'Hier-AVG, with K-AVG',
    (
      Paper('Zhou, Cong 2019', '1903.05133'),
      Paper('Zhou, Cong 2018 (K-AVG)', '1708.01012'),
    ),
    (
      Missing(
        '1903.05133', 'ResNet-18 and other networks on CIFAR-10.', _NOT_RUN
      ),
      Missing('1903.05133', 'ImageNet-1K.', 'the data are not available here'),
      Missing(
        '1708.01012',
        'K-AVG on 128 GPUs beats asynchronous SGD by time and accuracy.',
        'needs the hardware; the ledger models no parameter server',
      ),
    ),
  ),
  Document(
    'DPSGD at large batches, with its related work',
    (
      Paper('Zhang, Liu, Feng, Cui, Kingsbury, Tu 2021', '2112.01433'),
      Paper('Lian et al. 2017 (D-PSGD)', '1705.09056'),
      Paper('Lian, Zhang, Zhang, Liu 2018 (AD-PSGD)', '1710.06952'),
      Paper('Zhu, He, Chen, Song, Tao 2023', '2306.02913'),
      Paper('Feng, Zhang, Tu 2023 (duality)', '2203.10736'),
    ),
    (
      Missing(
        '2112.01433',
        '18 models and tasks in vision and speech.',
        'an MLP on MNIST is judged; the data or the weights of the other '
        'models are missing',
      ),
      Missing(
        '1705.09056',
        'D-PSGD is faster than a parameter server on slow networks.',
        'needs the hardware; the ledger models no parameter server',
      ),
      Missing(
        '1710.06952',
        'AD-PSGD trains at three times the batch of SSGD, on SWB300 and '
        'SWB2000.',
        _SPEECH,
      ),
      Missing(
        '2306.02913',
        'The rows of its table from pretrained weights.',
        'the weights are not available here',
      ),
      Missing(
        '2306.02913',
        'Its averaged direction smooths the gradient, and evaluates the '
        'uncertainty of the posterior.',
        'no study measures either of them',
      ),
    ),
  ),
)
