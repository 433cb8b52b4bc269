"""Runs as Python: each file makes one model."""
