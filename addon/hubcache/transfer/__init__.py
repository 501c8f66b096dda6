"""Bytes on the move: from the upstream into the store, and from either to clients."""
