"""Measure algorithms on several hosts, and compare with the ledger."""
