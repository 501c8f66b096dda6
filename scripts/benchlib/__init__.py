"""The benchmark: hubcache beside other caches, with the same images and the same upstream registry."""
