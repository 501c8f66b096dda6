"""Reasons of failed requests, from real errors of obstore."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import obstore
import pytest
from hubcache.fleet.failure_reason import failure_reason
from obstore.exceptions import BaseError
from obstore.store import S3Store

ANSWER = b"""HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n<?xml version="1.0"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature does not match.</Message></Error>"""


@contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Answer one connection; yields the URL."""

    def accept() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


def failure(url: str) -> str:
    """Return the reason of a write that fails, with the port replaced."""
    store = S3Store(
        "bucket",
        endpoint=url,
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True, "read_timeout": "300ms"},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(BaseError) as caught:
        obstore.put(store, "a", b"1")
    return re.sub(r"127\.0\.0\.1:\d+", "HOST", failure_reason(caught.value))


def test_refused_connection_is_named() -> None:
    assert failure("http://127.0.0.1:9") == (
        "Generic S3 error: Error performing PUT http://HOST/bucket/a: Connection refused"
    )


def test_unknown_host_is_named() -> None:
    too_long = "a" * 64  # for the resolver, which then asks no server
    assert "lookup" in failure(f"http://{too_long}:9")


def test_time_out_is_named() -> None:
    ended = threading.Event()
    with listening(lambda connection: ended.wait()) as url:
        try:
            reason = failure(url)
        finally:
            ended.set()
    assert reason == "Generic S3 error: Error performing PUT http://HOST/bucket/a: timed out"


def test_error_code_of_the_bucket_is_named() -> None:
    with listening(lambda connection: connection.sendall(ANSWER)) as url:
        assert failure(url).endswith("status code: 403 Forbidden: SignatureDoesNotMatch")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "timed out"),
        (OSError(), "OSError"),
        (ConnectionResetError("reset"), "reset"),
        (OSError("first: \nsecond"), "first"),
        (OSError("HTTP error: error sending request\nnothing known"), "HTTP error: error sending request"),
        (OSError('Error: 500: <?xml version="1.0"?>\n<Error/>'), "Error: 500"),
        (
            OSError("PUT x in 8.2s, after 2 retries, max_retries: 2, retry_timeout: 5s  - HTTP error: x"),
            "PUT x: HTTP error: x",
        ),
    ],
)
def test_other_errors_are_one_line(error: OSError, reason: str) -> None:
    assert failure_reason(error) == reason
