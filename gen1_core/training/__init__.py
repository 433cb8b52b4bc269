"""Training of a small model on the procedural world, part by part."""
