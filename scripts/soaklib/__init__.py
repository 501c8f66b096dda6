"""Tests the promises of the real program under kills, upstream faults, eviction and hostile input."""
