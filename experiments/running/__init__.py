"""One run: its flags, its records, its loop."""
