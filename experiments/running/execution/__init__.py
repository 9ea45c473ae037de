"""The parts of a run, and the loop over its steps."""
