"""A worker process, started by the owner when `hubcache_workers` is more than 1; not to be started by hand."""

from hubcache.mitm import listeners
from mitmproxy.tools.main import mitmdump

listeners.inherit()
mitmdump()
