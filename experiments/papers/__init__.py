"""The papers' figures and tables, one module each (t01_..., t02_...).

A module has a `TARGET` with the claims of the paper, their measurement and the
figure. `python -m experiments.reproduce` runs them.
"""
