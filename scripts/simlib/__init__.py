"""The simulator: compares hubcache's retention policy with other cache policies on traces of requests."""
