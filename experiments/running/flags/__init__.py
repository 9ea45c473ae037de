"""Define the flags of a run, and parse the values they name."""
