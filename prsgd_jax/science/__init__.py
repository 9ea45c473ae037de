"""What is known of averaged SGD, and what is measured along a run."""

from prsgd_jax.science import landscape, laws, noise, theory

__all__ = ('landscape', 'laws', 'noise', 'theory')
