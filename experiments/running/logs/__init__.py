"""Send the records of a run to its directory, a terminal, and loggers."""
