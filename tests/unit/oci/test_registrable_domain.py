"""Registrable domains by the Public Suffix List."""

import pytest
from hubcache.oci.registrable_domain import registrable_domain


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("registry-1.docker.io", "docker.io"),
        ("AUTH.Docker.io", "docker.io"),
        ("registry.example.co.uk", "example.co.uk"),
        ("a.b.lab.internal", "lab.internal"),
        ("someone.github.io", "someone.github.io"),
        ("co.uk", "co.uk"),
        ("localhost", "localhost"),
    ],
)
def test_registrable_domain_follows_the_public_suffix_list(host: str, domain: str) -> None:
    assert registrable_domain(host) == domain
