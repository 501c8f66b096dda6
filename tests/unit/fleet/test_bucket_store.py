"""The clients of the bucket that an option names."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hubcache.fleet import bucket_store
from hubcache.fleet.bucket import Bucket, BucketUnavailable
from hubcache.fleet.bucket_store import BucketStore, open_bucket_stores
from hubcache.oci.errors import ConfigError

SECRET = "s3cr3t-of-the-environment"

type Opener = Callable[[str], tuple[BucketStore, ...]]


class Silent:
    def bucket_answered(self, kind: str, outcome: str, *, is_of_pulls: bool) -> None:
        pass


class Gateway(ThreadingHTTPServer):
    """A bucket that accepts each write, and never sends the second half of a body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.requests: list[str] = []
        self.conditions: list[str | None] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Requests(BaseHTTPRequestHandler):
    """Requests to a `Gateway`."""

    server: Gateway

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(f"{self.path} {self.headers.get('Authorization', '').partition('/')[0]}")
        self.server.conditions.append(self.headers["x-goog-if-generation-match"])
        self._send_head(0)

    def do_GET(self) -> None:
        self._send_head(2000)
        self.wfile.write(b"x" * 1000)
        self.wfile.flush()
        self.server.ended.wait()

    def _send_head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("x-goog-generation", "12345")
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running(gateway: Gateway) -> Iterator[Gateway]:
    with gateway:
        thread = threading.Thread(target=gateway.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield gateway
        finally:
            gateway.ended.set()
            gateway.shutdown()
            thread.join()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running(Gateway()) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Only the variables that a test sets count, and two keys."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return monkeypatch


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    return lambda url: open_bucket_stores(url, os.environ, tmp_path)


async def test_requests_go_to_bucket_and_prefix_at_the_endpoint(
    environment: pytest.MonkeyPatch, opened: Opener, gateway: Gateway, tmp_path: Path
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", f"{gateway.url}/")
    (store,) = opened("s3://bucket/pre/fix/")
    assert (store.host, store.port) == ("127.0.0.1", gateway.server_port)
    bucket = Bucket(store.requests, Silent(), uploads=store.uploads)
    await bucket.put("node/a", b"1")
    (tmp_path / "file").write_bytes(b"1")
    await bucket.upload("blob/a", tmp_path / "file")
    assert gateway.requests == [
        "/bucket/pre/fix/node/a AWS4-HMAC-SHA256 Credential=AKENV",
        "/bucket/pre/fix/blob/a AWS4-HMAC-SHA256 Credential=AKENV",
    ]


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
async def test_each_endpoint_of_a_list_has_a_client(
    environment: pytest.MonkeyPatch, opened: Opener, gateway: Gateway, variable: str
) -> None:
    with running(Gateway()) as second:
        environment.setenv(variable, f"{gateway.url},{second.url}")
        for store in opened("s3://bucket"):
            await Bucket(store.requests, Silent()).put("a", b"1")
        assert len(gateway.requests) == len(second.requests) == 1


async def test_credentials_of_a_file_are_used(
    environment: pytest.MonkeyPatch, opened: Opener, gateway: Gateway, tmp_path: Path
) -> None:
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    environment.setenv("AWS_ENDPOINT_URL", gateway.url)
    with pytest.raises(ConfigError, match=r"no credentials; expected AWS_ACCESS_KEY_ID"):
        opened("s3://bucket")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id=AKFILE\naws_secret_access_key=s\n")
    (store,) = opened("s3://bucket")
    await Bucket(store.requests, Silent()).put("a", b"1")
    assert gateway.requests == ["/bucket/a AWS4-HMAC-SHA256 Credential=AKFILE"]


async def test_google_cloud_storage_is_asked_to_replace_a_generation(
    environment: pytest.MonkeyPatch, opened: Opener, gateway: Gateway
) -> None:
    environment.setenv("GOOGLE_BASE_URL", gateway.url)
    environment.setenv("GOOGLE_BEARER_TOKEN", SECRET)
    (store,) = opened("gs://bucket")
    assert (store.host, store.port) == ("127.0.0.1", gateway.server_port)
    bucket = Bucket(store.requests, Silent())
    created = await bucket.create("a", b"1")
    assert created == "12345"
    assert await bucket.replace("a", b"2", created) == "12345"
    assert gateway.conditions == ["0", "12345"]


async def test_body_that_stalls_breaks_off(environment: pytest.MonkeyPatch, opened: Opener, gateway: Gateway) -> None:
    environment.setattr(bucket_store, "_READ", timedelta(milliseconds=200))
    environment.setattr(bucket_store, "_RETRIES", {"max_retries": 0})
    environment.setenv("AWS_ENDPOINT_URL", gateway.url)
    (store,) = opened("s3://bucket")
    body = await Bucket(store.requests, Silent()).open("blob/a")
    assert body is not None
    assert body.entry.size == 2000
    with pytest.raises(BucketUnavailable, match="broke off"):
        await asyncio.to_thread(list, body.chunks)


async def test_request_to_a_closed_port_fails_within_seconds(environment: pytest.MonkeyPatch, opened: Opener) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (store,) = opened("s3://bucket")
    async with asyncio.timeout(10):
        with pytest.raises(BucketUnavailable, match="Connection refused"):
            await Bucket(store.requests, Silent()).put("a", b"1")


def test_host_of_each_provider_is_reported(environment: pytest.MonkeyPatch, opened: Opener) -> None:
    environment.setenv("AWS_REGION", "eu-west-1")
    environment.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    found = [opened(url)[0] for url in ("s3://bucket", "gs://bucket/a", "az://bucket")]
    assert [(store.host, store.port) for store in found] == [
        ("s3.eu-west-1.amazonaws.com", 443),
        ("storage.googleapis.com", 443),
        ("mine.blob.core.windows.net", 443),
    ]


@pytest.mark.parametrize(
    ("url", "variables", "message"),
    [
        ("http://bucket", {}, "expected a bucket such as s3://NAME"),
        ("s3://bucket/x y", {}, "expected a bucket such as s3://NAME"),
        ("s3://bucket/..", {}, "expected a bucket such as s3://NAME"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "host:1"}, "the endpoint 'host:1' is not a URL"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://ho st:1"}, "the endpoint 'http://ho st:1' is not a URL"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://host:99999"}, "the endpoint 'http://host:99999' is not a URL"),
        ("s3://bucket", {"AWS_ENDPOINT_URL": f"http://u:{SECRET}@host:1"}, "the endpoint contains a user name"),
        ("s3://bucket", {"AWS_ACCESS_KEY_ID": ""}, "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not"),
        ("s3://bucket", {"AWS_CA_BUNDLE": "/nowhere"}, "AWS_CA_BUNDLE: /nowhere cannot be read: No such file"),
        ("s3://bucket", {"AWS_CHECKSUM_ALGORITHM": SECRET}, r'"\*\*\*" is not a valid checksum algorithm'),
        ("az://bucket", {}, "Account must be specified"),
        ("az://bucket", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": f"{SECRET}!"}, "Access Key"),
        ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": f'"{SECRET}"'}, "invalid type: a string"),
        ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": f'{{"private_key": "{SECRET}"}}'}, "missing field"),
        ("gs://bucket", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere"}, "/nowhere: No such file"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line_without_credentials(
    environment: pytest.MonkeyPatch, opened: Opener, url: str, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as caught:
        opened(url)
    text = str(caught.value)
    assert text.startswith("hubcache_bucket: ")
    assert "\n" not in text
    assert SECRET not in text
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "the cause may contain credentials"
