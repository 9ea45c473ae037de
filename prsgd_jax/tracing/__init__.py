"""TRACING: the functions that callers pass in, checked and isolated.

`caller_functions` checks their arguments and results. `isolation` traces them
without the axis of replicas. `keys` replaces their random keys. `primitives`
looks into the traced programs, `barriers` bounds what XLA fuses.
"""
