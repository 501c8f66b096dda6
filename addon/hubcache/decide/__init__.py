"""Decisions as pure functions of records and the time: freshness, retention, and when tags are validated."""
