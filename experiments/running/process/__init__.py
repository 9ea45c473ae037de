"""The process of a program: signals, streams, locks, messages."""
