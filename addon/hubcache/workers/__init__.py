"""Worker processes: one process owns the store and decides on answers, the others serve clients at the same ports."""
