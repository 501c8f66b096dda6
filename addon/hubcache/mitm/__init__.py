"""All that uses internals of mitmproxy or pyOpenSSL; `compat` has the tested versions."""
