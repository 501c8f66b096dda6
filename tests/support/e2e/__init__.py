"""Upstream and clients of the end-to-end tests: a registry with real images; dockerd, containerd, podman, skopeo."""
