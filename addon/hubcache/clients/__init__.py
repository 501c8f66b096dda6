"""Limits on clients: which may connect, how many connections they may have, and which hosts they may reach."""
