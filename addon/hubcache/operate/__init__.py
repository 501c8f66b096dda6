"""For those who run it: options, the CA, metrics, and the status listener."""
