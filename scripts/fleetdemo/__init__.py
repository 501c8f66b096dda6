"""A fleet on one machine: SeaweedFS and several caches that share a bucket in it. `scripts/serve --fleet-demo N`."""
