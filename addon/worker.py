"""A worker process, started by the owner when `hubcache_workers` is more than 1; not to be started by hand."""

from hubcache import doors
from mitmproxy.tools.main import mitmdump

doors.inherit()
mitmdump()
