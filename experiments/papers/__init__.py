"""The papers' figures and tables, one module each (t01_... to t19_...).

A module has a `TARGET` with the claims of the paper, their measurement and the
figure. `python -m experiments.reproduce` runs them.
"""
