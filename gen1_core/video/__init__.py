"""Clips as streams of bytes: read, resize, write."""
