"""The conformance suite's pushes and deletions at Debian's docker-registry, without and with the cache in between."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.conformance import Conformance
from support.e2e.upstream import start_registry
from support.http_client import Answer, request
from support.program import HUB_HOST, running_program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture
def registry(workspace: Path) -> Iterator[int]:
    """The port of a registry without access control."""
    daemon, port = start_registry(workspace)
    yield port
    daemon.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_push_and_delete_have_the_same_answers_as_without_the_proxy(registry: int, workers: str) -> None:
    direct = functools.partial(request, registry)
    expected = Conformance(direct, f"direct{workers}", f"direct{workers}/other").run()
    options: dict[str, str | list[str]] = {
        "hubcache_tag_ttl": "600",
        "hubcache_negative_ttl": "600",
        "hubcache_workers": workers,
        "hubcache_registries": [f"{HUB_HOST}=http://127.0.0.1:{registry}"],
    }
    with running_program(None, HUB_HOST, **options) as program:
        client = program.client("proxy")

        def through_proxy(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
            return client.request(method, path, headers, body)

        found = Conformance(through_proxy, f"through{workers}", f"through{workers}/other").run()
    for wanted, got in zip(expected, found, strict=True):
        assert got == wanted
