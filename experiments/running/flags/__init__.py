"""The flags of a run, and the values that they name."""
