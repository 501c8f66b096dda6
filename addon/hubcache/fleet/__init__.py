"""Several caches that share one bucket."""
