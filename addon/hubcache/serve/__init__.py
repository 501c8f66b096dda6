"""What a request to a registry is answered, without any of mitmproxy's types."""
