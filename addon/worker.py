"""Runs a worker process; the owner process starts it when `hubcache_workers` is more than 1."""

from hubcache.workers.owner_watch import end_with_owner

end_with_owner()  # before the other imports, which take seconds

from hubcache.mitm import listeners  # noqa: E402
from mitmproxy.tools.main import mitmdump  # noqa: E402

listeners.inherit()
mitmdump()
