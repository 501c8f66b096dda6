"""Runs a worker process; the owner process starts it when `hubcache_workers` is more than 1."""

from hubcache.mitm import listeners
from mitmproxy.tools.main import mitmdump

listeners.inherit()
mitmdump()
