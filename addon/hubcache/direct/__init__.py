"""Direct connections: clients that are served without mitmproxy, where the user sees no difference."""
