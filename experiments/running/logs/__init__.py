"""Where the records of a run are sent."""
