"""The papers' figures and tables, one module each (t01_... to t13_...).

A module has a `TARGET`: what the paper says, how it is measured, how the figure
is drawn. `python -m experiments.reproduce` runs them.
"""
