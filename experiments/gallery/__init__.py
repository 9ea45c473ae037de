"""The gallery: questions that papers leave open, each in one small experiment.

Each module `g1_...` to `g7_...` has an `Entry`: runs, a figure and three
sentences. `python -m experiments.make_gallery` runs them.
"""
