"""Interfaces to operators: options, the CA, metrics, the status listener and the access log."""
