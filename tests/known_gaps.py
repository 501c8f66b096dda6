"""Tests that show what is known to be missing still; they run, and each that begins to pass is to be taken out here."""

GAPS: frozenset[str] = frozenset({})
