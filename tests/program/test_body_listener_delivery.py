"""Bodies that mitmproxy has to send, because another addon or an option processes them, arrive complete from the body
listener."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http_client import TIMEOUT, Exchange, head
from support.program import HUB_HOST, LISTENERS, RegistryClient, running_program
from support.standin import Hub, random_bytes

LARGE = 5_000_000
CONNECTS_TO_LISTENER = "server connect 127.0.0.1"
"""What mitmproxy logs when it connects to the body listener."""


def bodies(client: RegistryClient, digest: str, times: int, **headers: str) -> list[bytes]:
    """Bodies of one blob, requested one after the other on one connection."""
    received = []
    with client.connect() as kept:
        for _ in range(times):
            kept.sendall(head("GET", f"/v2/{client.repo}/blobs/{digest}", {"Host": HUB_HOST} | headers))
            received.append(Exchange(kept, "GET").finish().body)
    return received


@pytest.mark.parametrize("hook", ["request", "responseheaders", "response"])
def test_script_sees_flows_whose_bodies_come_from_the_body_listener(hub: Hub, tmp_path: Path, hook: str) -> None:
    script = tmp_path / "listens.py"
    script.write_text(f"def {hook}(flow):\n    print('script saw', flow.request.url, flush=True)\n")
    with running_program(hub, arguments=["-s", str(script)], hubcache_tag_ttl="600") as program:
        for name in LISTENERS:
            client = program.client(name)
            data = random_bytes(LARGE, client.repo)
            digest = hub.blob(client.repo, data)
            assert bodies(client, digest, 3) == [data] * 3
            assert bodies(client, digest, 2, range="bytes=70000-4000000") == [data[70_000:4_000_001]] * 2
        assert "script saw" in program.log
        assert CONNECTS_TO_LISTENER in program.log


def test_header_that_an_option_adds_is_added_to_answers_with_bodies(hub: Hub) -> None:
    with running_program(hub, modify_headers="/~s/x-added/yes") as program:
        for name in LISTENERS:
            client = program.client(name)
            data = random_bytes(LARGE, client.repo)
            answer = client.blob(hub.blob(client.repo, data))
            assert (answer.body == data, answer.headers["x-added"]) == (True, "yes")


def test_body_inside_tls_inside_tls_arrives_complete(hub: Hub) -> None:
    """The client speaks TLS to the proxy, too."""
    with running_program(hub) as program:
        client = program.client("proxy")
        data = random_bytes(LARGE, client.repo)
        digest = client.hub.blob(client.repo, data)
        outer = ssl.create_default_context()
        outer.check_hostname, outer.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as plain,
            outer.wrap_socket(plain) as to_proxy,
        ):
            to_proxy.sendall(head("CONNECT", f"{HUB_HOST}:443", {"Host": f"{HUB_HOST}:443"}))
            assert to_proxy.recv(4096).startswith(b"HTTP/1.1 200")
            inner = Inner(to_proxy, program.ssl_context())
            inner.send(head("GET", f"/v2/{client.repo}/blobs/{digest}", {"Host": HUB_HOST, "Connection": "close"}))
            received = b"".join(inner.receive())
        assert received.partition(b"\r\n\r\n")[2] == data
        assert CONNECTS_TO_LISTENER in program.log


class Inner:
    """A TLS connection with the registry inside a TLS connection with the proxy."""

    def __init__(self, outer: ssl.SSLSocket, trust: ssl.SSLContext) -> None:
        self._outer = outer
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._received, self._to_send, server_hostname=HUB_HOST)

    def send(self, data: bytes) -> None:
        while True:
            try:
                self._tls.write(data)
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                self._outer.sendall(self._to_send.read())
                return

    def receive(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._tls.read(65536)
            except ssl.SSLWantReadError:
                if not self._exchange():
                    return

    def _exchange(self) -> bool:
        if self._to_send.pending:
            self._outer.sendall(self._to_send.read())
        data = self._outer.recv(65536)
        self._received.write(data)
        return bool(data)
