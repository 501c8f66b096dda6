"""Pages and scripts that attach clients to this cache."""
