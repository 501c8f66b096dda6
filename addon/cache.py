"""Entry point: `mitmdump -s addon/cache.py` or `mitmweb -s addon/cache.py`."""

from hubcache.plugin import Hubcache

addons = [Hubcache()]
