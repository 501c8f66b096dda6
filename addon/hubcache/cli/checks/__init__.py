"""The checks of `hubcache doctor`: each yields findings about one part of a cache, of its network, or of a client."""
