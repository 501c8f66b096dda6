"""Entry point: `mitmdump -s addon/cache.py` or `mitmweb -s addon/cache.py`."""

from hubcache.startup import Hubcache

addons = [Hubcache()]
