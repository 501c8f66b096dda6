"""Decisions as pure functions of records and the time: what is fresh, and what is given up for space."""
