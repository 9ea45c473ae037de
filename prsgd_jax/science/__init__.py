"""SCIENCE: theory of averaged SGD, and measurements along a run.

`theory` has the bounds of the papers, `laws` exact results on simple problems.
`noise` and `landscape` measure gradients and curvature on the host.
"""

from prsgd_jax.science import landscape, laws, noise, theory

__all__ = ('landscape', 'laws', 'noise', 'theory')
