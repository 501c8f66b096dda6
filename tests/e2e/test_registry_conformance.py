"""The conformance suite's pushes and deletions against Debian's docker-registry, without and with the cache between."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.conformance import Conformance
from support.http_client import TIMEOUT, Answer, Exchange, head
from support.lab.origin import start_registry
from support.program import HUB_HOST, running_program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300, func_only=True)]


@pytest.fixture
def registry(room: Path) -> Iterator[int]:
    """The port of a registry where everybody may do everything."""
    daemon, port = start_registry(room)
    yield port
    daemon.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_push_and_delete_through_the_proxy_are_as_without_it(registry: int, workers: str) -> None:
    def direct(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        fields = {"Host": "registry", "Connection": "close", **headers}
        fields |= {"Content-Length": str(len(body))} if body else {}
        with socket.create_connection(("127.0.0.1", registry), TIMEOUT) as connection:
            connection.sendall(head(method, path, fields) + body)
            return Exchange(connection, method).finish()

    expected = Conformance(direct, f"direct{workers}", f"direct{workers}/other").run()
    options = {"hubcache_tag_ttl": "600", "hubcache_negative_ttl": "600", "hubcache_workers": workers}
    mapped = [f"{HUB_HOST}=http://127.0.0.1:{registry}"]
    with running_program(hubcache_registries=mapped, **options) as program:
        client = program.client("proxy")

        def through(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
            return client.request(method, path, headers, body=body)

        found = Conformance(through, f"through{workers}", f"through{workers}/other").run()
    for wanted, got in zip(expected, found, strict=True):
        assert got == wanted
