"""Each request is recorded however it is served, and each pull becomes a line of the log."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.http_client import wait_until
from support.program import LISTENERS, Program, RegistryClient, running_program
from support.standin import Fault, Hub, Image, random_bytes

LAYER = random_bytes(3_000_000)
ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()
WAYS = {
    "direct": {"hubcache_log_format": "json", "flow_detail": "0"},
    "mitmproxy": {"hubcache_log_format": "json", "flow_detail": "2", "hubcache_workers": "1"},
    "workers": {"hubcache_log_format": "json", "flow_detail": "0", "hubcache_workers": "2"},
}
"""Options with which all requests are served in one way."""


def pull(client: RegistryClient, image: Image, headers: dict[str, str] | None = None) -> None:
    """Request everything of an image as docker does, and wait until each request is recorded."""
    before = recorded(client.program)
    client.manifest(image.tag or image.digest, headers, "HEAD")
    client.manifest(image.digest, headers)
    wait_until(lambda: recorded(client.program) == before + 2)  # another worker may serve the blobs
    for digest in (image.config, *image.layers):
        client.blob(digest, headers)
    wait_until(lambda: recorded(client.program) == before + 3 + len(image.layers))


def recorded(program: Program) -> float:
    """Return the number of requests that ended."""
    return program.metric("hubcache_request_seconds_count")


def lines(program: Program) -> list[dict[str, Any]]:
    """Return the pulls that the log names."""
    found = [json.loads(line) for line in program.log.splitlines() if line.startswith("{")]
    return [line for line in found if line.get("event") == "pull"]


@pytest.fixture(scope="module", params=WAYS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Program, list[dict[str, Any]], str]]:
    """Serve pulls in one way, and return the program, its pull lines and the way."""
    with Hub() as hub, running_program(hub, hubcache_tag_ttl="600", **WAYS[request.param]) as program:
        for listener in LISTENERS:
            client = program.client(listener)
            image = hub.image(f"library/{listener}", "1", [LAYER, listener.encode()])
            client.repo = f"library/{listener}"
            pull(client, image)
            client.wait_until_stored()
            pull(client, image)
            before = recorded(program)
            client.manifest("none")
            wait_until(lambda before=before: recorded(program) == before + 1)
        private = program.client("proxy")
        private.repo = "alice/own"
        image = hub.image(private.repo, "1", [b"secret"])
        hub.private(private.repo, {"alice": "secret"})
        before = recorded(program)
        token = private.token(f"repository:{private.repo}:pull", ALICE)
        wait_until(lambda: recorded(program) == before + 1)
        pull(private, image, {"Authorization": f"Bearer {token}"})
        aborted = program.client("mirror")
        aborted.repo = "library/aborted"
        fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1_000_000))
        digest = hub.blob(aborted.repo, random_bytes(2_000_000))
        before = recorded(program)
        exchange = aborted.send("GET", f"/v2/{aborted.repo}/blobs/{digest}")
        exchange.read(900_000)
        exchange.close()
        hub.faults.remove(fault)
        wait_until(lambda: recorded(program) == before + 1)
        program.stop()
        yield program, lines(program), request.param


type Served = tuple[Program, list[dict[str, Any]], str]


def of(served: Served, image: str) -> list[dict[str, Any]]:
    return [line for line in served[1] if line["image"] == image]


@pytest.mark.parametrize("listener", LISTENERS)
def test_each_pull_is_a_line_with_its_numbers(served: Served, listener: str) -> None:
    size = len(LAYER) + len(listener)
    first, second = of(served, f"{listener}:1")
    for line, result in ((first, "miss" if listener == "proxy" else "mixed"), (second, "hit")):
        assert line["result"] == result
        assert (line["requests"], line["listener"], line["client"]) == (5, listener, "127.0.0.1")
        assert size < line["sent"] < size + 3000
        assert line["sent"] == line["from_store"] + line["from_upstream"]
        assert 0 < line["duration"] < 60
    assert (first["requests_upstream"] > 0, second["requests_upstream"]) == (True, 0)
    assert first["from_upstream"] > (len(LAYER) if listener == "proxy" else len(listener))
    assert second["from_upstream"] == 0


@pytest.mark.parametrize("listener", LISTENERS)
def test_refused_tag_is_a_line_with_its_reason(served: Served, listener: str) -> None:
    (line,) = of(served, f"{listener}:none")
    assert (line["result"], line["error"]) == ("failed", "manifest none: 404 manifest unknown")
    assert " failed: manifest none: 404 manifest unknown; 1 request, 0 bytes in " in line["message"]


def test_private_pull_is_a_line_without_a_token(served: Served) -> None:
    (line,) = of(served, "alice/own:1")
    assert (line["result"], line["is_private"], line["redirected"]) == ("private", True, 2)
    assert 0 < line["sent"] < 3000
    assert "earer" not in served[0].log


def test_aborted_download_is_a_failed_pull(served: Served) -> None:
    (line,) = of(served, "aborted")
    assert (line["result"], line["requests"]) == ("failed", 1)
    assert re.fullmatch("blob sha256:[0-9a-f]{12}: the client disconnected", line["error"])
    assert 0 < line["sent"] < 2_000_000


def test_every_line_is_json(served: Served) -> None:
    program, _, way = served
    outputs = [line for line in program.log.splitlines() if "Loading script" not in line]
    if way == "mitmproxy":  # which prints the flows as well
        outputs = [line for line in outputs if line.startswith("{")]
    assert outputs
    assert all({"time", "level", "message"} <= json.loads(line).keys() for line in outputs)
