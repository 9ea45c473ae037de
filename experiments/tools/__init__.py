"""Figures and tables, and the programs that write the project's own."""
