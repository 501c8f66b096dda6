"""All that uses internals of mitmproxy or pyOpenSSL; `compat` says with which versions."""
