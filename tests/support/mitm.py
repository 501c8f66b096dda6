"""mitmproxy's own test tools, imported in spite of the deprecation warnings of libraries that it imports."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # ldap3 uses names that pyasn1 calls deprecated
    from mitmproxy.test import taddons, tflow

__all__ = ["taddons", "tflow"]
