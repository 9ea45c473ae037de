"""The headline figure of PR-SGD, as runs of hours on two cores.

`setting` has the runs, `small_images` their data, `averages` what is measured
of the averaged model, `curves` the records as numbers, `host_times` the
measured times of a step and a round, `judging` the claims, and `drawing_curves`
the figure.
"""
