"""A cache of Docker Hub, or of any registry, that lives inside mitmproxy."""
