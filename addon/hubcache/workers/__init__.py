"""Several processes on the same doors: one owns the store and decides, the others speak with clients."""
