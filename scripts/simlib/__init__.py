"""The simulator: the retention policy beside its rivals, on the same traces."""
