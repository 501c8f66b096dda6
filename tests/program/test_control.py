"""The control socket of the program as users run it: with one process, with workers, and after a kill."""

import os
import signal
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from hubcache.control.socket_file import SOCKET_NAME
from support.control import call_program
from support.http_client import wait_until
from support.program import Program, RegistryClient, running_program
from support.standin import Image, random_bytes
from support.worker_processes import at_work


@pytest.fixture(scope="module")
def shared() -> Iterator[Program]:
    with running_program() as running:
        yield running
        running.stop()
        assert not (running.store / SOCKET_NAME).exists()


@pytest.fixture
def program(shared: Program) -> Iterator[Program]:
    shared.reset()
    yield shared
    shared.assert_no_errors()


def call(program: Program, method: str, path: str, body: Any = None, expected: int = 200) -> Any:
    """Return the JSON that the control socket answers with the expected status."""
    status, answer = call_program(program.store, method, path, body)
    assert status == expected, answer
    return answer


def pulled(client: RegistryClient) -> tuple[str, Image]:
    """Pull a new image; return its name and the image."""
    image = client.hub.image(client.repo, "1", [random_bytes(100_000, client.repo)])
    pull(client, image)
    client.wait_until_stored()
    return f"{client.repo.removeprefix('library/')}:1", image


def pull(client: RegistryClient, image: Image) -> None:
    """Pull an image; fails unless all of it is served."""
    assert client.manifest("1").body == image.manifest
    for digest in image.blobs:
        answer = client.blob(digest)
        assert (answer.status, answer.complete) == (200, True)


def names(program: Program) -> set[str]:
    """Return the names of the stored images."""
    return {image["name"] for image in call(program, "GET", "/v1/images")["images"]}


def test_only_the_user_of_the_cache_may_connect(program: Program) -> None:
    state = (program.store / SOCKET_NAME).stat()
    assert (stat.S_IMODE(state.st_mode), stat.S_ISSOCK(state.st_mode)) == (0o600, True)
    assert state.st_uid == os.geteuid()


def test_nothing_on_the_network_offers_the_commands(program: Program) -> None:
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/purge")):
        assert program.client("mirror").request(method, path).status == 404
    with pytest.raises(OSError, match="404"):
        program.status_page("/v1/images")


def test_status_has_the_store_and_the_version(program: Program) -> None:
    status = call(program, "GET", "/v1/status")
    assert status["store"]["directory"] == str(program.store)
    assert status["version"] == program.health["version"]


def test_pulled_image_is_listed_shown_and_purged(program: Program) -> None:
    client = program.client("mirror")
    name, image = pulled(client)
    [listed] = [each for each in call(program, "GET", "/v1/images")["images"] if each["name"] == name]
    assert (listed["digest"], listed["complete"]) == (image.digest, True)
    shown = call(program, "GET", f"/v1/image?name={name}")
    assert [blob["digest"] for blob in shown["manifests"][0]["blobs"]] == list(image.blobs)
    assert set(call(program, "POST", "/v1/purge", {"image": name})["removed"]) == {image.digest, *image.blobs}
    assert name not in names(program)
    program.hub.stop()
    assert client.manifest("1").status == 503
    assert client.blob(image.layers[0]).status == 503
    program.reset()
    pull(client, image)


def test_verification_is_a_stream_of_events(program: Program) -> None:
    _, image = pulled(program.client("mirror"))
    events = call(program, "POST", "/v1/verify", {"repair": True})
    assert {event["digest"] for event in events[1:-1]} >= {image.digest, *image.blobs}
    assert {event["state"] for event in events[1:-1]} == {"good"}
    assert (events[0]["begin"], events[-1]["done"], events[-1]["good"]) == (True, True, len(events) - 2)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/", None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/images", None, 405),
        ("GET", "/v1/purge", None, 405),
        ("GET", "/v1/image", None, 400),
        ("GET", "/v1/image?name=A", None, 400),
        ("GET", "/v1/image?name=none:1", None, 404),
        ("GET", "/v1/registry-probe?registry=quay.io", None, 409),
        ("POST", "/v1/pin", {}, 400),
        ("POST", "/v1/pin", {"image": 1}, 400),
        ("POST", "/v1/pin", {"image": "app:1:2"}, 400),
        ("POST", "/v1/unpin", {"image": "none:1"}, 404),
        ("POST", "/v1/purge", {}, 400),
        ("POST", "/v1/purge", {"image": "a", "digest": "b"}, 400),
        ("POST", "/v1/purge", {"digest": "sha256:12"}, 400),
        ("POST", "/v1/purge", {"image": "none:1", "force": 1}, 400),
        ("POST", "/v1/purge", {"image": "none:1"}, 404),
        ("POST", "/v1/verify", {"repair": "yes"}, 400),
    ],
)
def test_what_is_not_in_the_api_is_refused(program: Program, method: str, path: str, body: Any, expected: int) -> None:
    answer = call(program, method, path, body, expected)
    assert set(answer) == {"error"}
    assert answer["error"]
    assert "Traceback" not in answer["error"]


def test_probe_reports_the_registry(program: Program) -> None:
    program.hub.image("ratelimitpreview/test", "latest")
    report = call(program, "GET", "/v1/registry-probe?registry=docker.io")
    assert (report["ok"], report["upstream"]) == (True, program.hub.url())


def test_pins_survive_a_kill_and_the_stale_socket_is_replaced(program: Program) -> None:
    name, _ = pulled(program.client("mirror"))
    assert call(program, "POST", "/v1/pin", {"image": name})["stored"] is True
    program.stop(signal.SIGKILL)
    assert (program.store / SOCKET_NAME).exists()
    with pytest.raises(ConnectionRefusedError):
        call_program(program.store, "GET", "/v1/status")
    program.start()
    pinned = [image["name"] for image in call(program, "GET", "/v1/images")["images"] if image["pinned"]]
    assert pinned == [name]
    assert "pinned" in call(program, "POST", "/v1/purge", {"image": name}, 409)["error"]
    assert call(program, "POST", "/v1/unpin", {"image": name})["pinned"] is False
    assert call(program, "POST", "/v1/purge", {"image": name})["tags"] == [name]


def test_purge_invalidates_the_answers_of_workers() -> None:
    with running_program(hubcache_workers="2") as program:
        wait_until(lambda: at_work(program))
        clients = [program.client(name) for name in ("proxy", "mirror")]
        clients[1].repo = clients[0].repo
        name, image = pulled(clients[0])
        for client in clients * 2:  # workers repeat small answers for a second
            pull(client, image)
        assert call(program, "POST", "/v1/purge", {"image": name})["bytes"] > 100_000
        program.hub.stop()
        for client in clients * 2:
            assert client.manifest("1").status == 503
            assert client.blob(image.config).status == 503
        assert len(list(program.store.glob("*.sock"))) == 1
        program.hub.start()
