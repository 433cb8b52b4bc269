"""Images and texts to content."""
