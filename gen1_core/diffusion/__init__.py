"""Sampling from a diffusion model: pure functions on tensors; no modules, no files."""
