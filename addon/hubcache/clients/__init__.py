"""Which clients may connect, how many connections they may have, and where the proxy connects to for them."""
