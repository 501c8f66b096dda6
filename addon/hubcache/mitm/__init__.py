"""Everything that touches internals of mitmproxy or pyOpenSSL."""
