"""Transfers content: from registries into the store, and from either to clients."""
