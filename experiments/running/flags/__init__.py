"""Defines the flags of a run, and parses the values they name."""
