"""Frames to depth, and depth to what the network is shown of it."""
