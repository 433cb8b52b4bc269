"""The same jobs on one process, on many, or on the machines of a Ray cluster."""
