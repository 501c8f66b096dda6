"""Decides what requests to registries are answered, independent of mitmproxy."""
