"""Speed on one accelerator: what `gpu_benchmark.py` measures, piece by piece.

`cases` lists the measurements in order, `peaks` measures the limits of the
device, `contestants` makes the loops, `grouped` is ResNet-20 of all replicas
with grouped channels, `timing` times a loop, `store` keeps the results,
`figure_runs` trains the figure of PR-SGD, and `report` writes the table.
"""
