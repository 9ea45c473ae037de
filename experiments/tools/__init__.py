"""Figures and tables, and the programs that write those of the project."""
