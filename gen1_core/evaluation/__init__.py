"""How good the edits of a model are: a benchmark with known truth, baselines, judges, and a report."""
