"""Serves clients without mitmproxy where that makes no difference to anybody."""
