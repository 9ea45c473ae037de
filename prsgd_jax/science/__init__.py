"""SCIENCE: theory of averaged SGD, and measurements along a run.

`theory` has the bounds of the papers, `laws` exact results on simple problems,
and `least_squares` both for least squares. `noise` and `landscape` measure gradients and curvature on the host.
"""

from prsgd_jax.science import landscape, laws, least_squares, noise, theory

__all__ = ('landscape', 'laws', 'least_squares', 'noise', 'theory')
