"""The client of the control socket: its answers and errors, and the exit codes of these."""

import io
import os
import pwd
import socket
from pathlib import Path
from typing import Any

import pytest
from hubcache.cli.client import ControlClient
from hubcache.cli.errors import CommandError, RefusedError, UnreachableError
from hubcache.control.socket_file import SOCKET_NAME
from support.cli import Call, ControlStandIn, Reply, run


def test_answer_is_a_document(control: ControlStandIn) -> None:
    control.replies["GET /v1/image"] = Reply({"name": "a b"})
    assert ControlClient(control.directory).get("/v1/image", {"name": "a b&c"}) == {"name": "a b"}
    assert control.calls == [Call("GET", "/v1/image?name=a+b%26c")]


def test_body_is_json(control: ControlStandIn) -> None:
    control.replies["POST /v1/pin"] = Reply({"image": "debian"})
    assert ControlClient(control.directory).post("/v1/pin", {"image": "debian"}) == {"image": "debian"}
    assert control.calls == [Call("POST", "/v1/pin", {"image": "debian"})]


def test_put_sends_a_file(control: ControlStandIn) -> None:
    control.replies["PUT /v1/content/x"] = Reply({"stored": True})
    client = ControlClient(control.directory)
    assert client.put("/v1/content/x", io.BytesIO(b"content"), 7, {"media_type": "a/b"}) == {"stored": True}
    assert control.calls == [Call("PUT", "/v1/content/x?media_type=a%2Fb", b"content")]


def test_events_arrive_one_by_one(control: ControlStandIn) -> None:
    events: list[dict[str, Any]] = [{"state": "good"}, {"done": True}]
    control.replies["POST /v1/verify"] = Reply(events=events)
    assert list(ControlClient(control.directory).stream("/v1/verify", {})) == events


def test_work_that_ends_early_is_an_error(control: ControlStandIn) -> None:
    control.replies["POST /v1/verify"] = Reply(events=[{"state": "good"}])
    events = ControlClient(control.directory).stream("/v1/verify", {})
    assert next(events) == {"state": "good"}
    with pytest.raises(UnreachableError, match="ended before the work was done"):
        next(events)


def test_work_that_fails_is_an_error_after_its_events(control: ControlStandIn) -> None:
    control.replies["POST /v1/verify"] = Reply(events=[{"done": True, "error": "disk is full"}])
    events = ControlClient(control.directory).stream("/v1/verify", {})
    assert next(events)["done"]
    with pytest.raises(CommandError, match="disk is full"):
        next(events)


@pytest.mark.parametrize("status", [400, 404, 409, 503, 507])
def test_refusal_is_the_sentence_of_the_cache(control: ControlStandIn, status: int) -> None:
    control.replies["POST /v1/pin"] = Reply({"error": "debian is not stored"}, status)
    with pytest.raises(RefusedError, match=r"^debian is not stored$"):
        ControlClient(control.directory).post("/v1/pin", {})


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply({"error": "a fault"}, 500), "^a fault$"),
        (Reply(raw=b"not json"), "sent no JSON; its version may not be the version of this command"),
        (Reply([1]), "JSON that is no object"),
    ],
)
def test_fault_of_the_cache_is_neither_refused_nor_unreachable(
    control: ControlStandIn, reply: Reply, message: str
) -> None:
    control.replies["POST /v1/pin"] = reply
    with pytest.raises(CommandError, match=message) as raised:
        ControlClient(control.directory).post("/v1/pin", {})
    assert raised.value.code == 1


@pytest.mark.parametrize("raw", [b"<html>", b'"text"', b"{}"])
def test_refusal_without_a_sentence_names_the_status_and_the_versions(control: ControlStandIn, raw: bytes) -> None:
    control.replies["GET /v1/new"] = Reply(raw=raw, status=404)
    with pytest.raises(RefusedError, match="the cache answered 404 Not Found; its version may not be"):
        ControlClient(control.directory).get("/v1/new")


def test_store_that_does_not_exist_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=f"no cache runs with the store {tmp_path}/no, which does not exist"):
        ControlClient(tmp_path / "no").get("/v1/status")


def test_store_without_a_socket_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="which has no control socket: start it, or name its store with --dir"):
        ControlClient(tmp_path).get("/v1/status")


def test_socket_of_a_killed_cache_is_recognized(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / SOCKET_NAME))
    with pytest.raises(UnreachableError, match="its last one was killed; start it"):
        ControlClient(tmp_path).get("/v1/status")


def test_missing_permission_names_the_user_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    owner = pwd.getpwuid(tmp_path.stat().st_uid).pw_name
    with pytest.raises(UnreachableError, match=f"no permission to use {tmp_path}/.*: run this command as {owner}"):
        ControlClient(tmp_path).get("/v1/status")


def test_cache_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET_NAME))
        silent.listen()
        with pytest.raises(UnreachableError, match="did not answer within 0 seconds"):
            ControlClient(tmp_path).get("/v1/status", seconds=0.05)


def test_cache_that_ends_while_it_answers_is_unreachable(control: ControlStandIn) -> None:
    def end(_: Call) -> Reply:
        raise ConnectionAbortedError

    control.replies["GET /v1/status"] = end
    with pytest.raises(UnreachableError, match="the cache ended while it answered"):
        ControlClient(control.directory).get("/v1/status")


def test_long_path_of_a_store_is_no_problem(control: ControlStandIn, tmp_path: Path) -> None:
    control.replies["GET /v1/status"] = Reply({"version": "1"})
    long = tmp_path / ("a" * 120)
    long.symlink_to(control.directory)
    assert ControlClient(long).get("/v1/status") == {"version": "1"}


def test_unreachable_cache_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    done = run("status", "--dir", str(tmp_path), "--json")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == (
        f"hubcache: no cache runs with the store {tmp_path}, which has no control socket: start it, or name its store "
        "with --dir\n"
    )


def test_wrong_usage_is_exit_code_2() -> None:
    assert run("no-such-command").exit_code == 2
    assert run("show").exit_code == 2
    assert run("ls", "--sort", "colour").exit_code == 2
