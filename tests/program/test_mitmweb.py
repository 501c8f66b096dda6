"""What mitmweb shows of the requests that it serves: comments, markers, sizes of streamed bodies."""

import json
import socket
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from support.http_client import TIMEOUT, Exchange, head, wait_until
from support.mitmweb import WebProgram, running_mitmweb
from support.program import HUB_HOST, LISTENERS, RegistryClient
from support.standin import Fault, random_bytes

LARGE = 1_000_000
ERROR = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProgram]:
    with running_mitmweb(tmp_path_factory.mktemp("web"), hubcache_tunnel=["*", "localhost"]) as running:
        yield running


@pytest.fixture(params=LISTENERS)
def client(request: pytest.FixtureRequest, program: WebProgram) -> Iterator[RegistryClient]:
    program.reset()
    yield program.client(request.param)
    program.assert_no_errors()


def response_size(flow: dict[str, Any]) -> int | None:
    size: int | None = flow["response"]["contentLength"]
    return size


def test_miss_and_hit_have_the_size_of_the_streamed_body(client: RegistryClient, program: WebProgram) -> None:
    digest = client.hub.blob(client.repo, random_bytes(LARGE, client.repo))
    for word, character, origin in (("miss", "↓", f"from {HUB_HOST} and stored"), ("hit", "√", "from the store")):
        assert client.blob(digest).complete
        client.wait_until_stored()
        flow = program.flow(f"/{client.repo}/blobs/{digest}", f"{word}: {origin}, 1 MB in ")
        assert (flow["marked"], response_size(flow)) == (character, LARGE)


def test_download_of_a_body_that_was_not_kept_is_answered_without_an_error_in_the_log(program: WebProgram) -> None:
    client = program.client("mirror")
    digest = client.hub.blob(client.repo, random_bytes(LARGE, client.repo))
    client.blob(digest)
    flow = program.flow(digest, "1 MB in ")
    with pytest.raises(urllib.error.HTTPError) as failed:
        program.fetch(f"/flows/{flow['id']}/response/content.data")
    failed.value.close()
    assert failed.value.code == 404
    shown = json.loads(program.fetch(f"/flows/{flow['id']}/response/content/auto.json"))
    assert shown["text"] == "Content is missing."
    program.assert_no_errors()


def test_disconnected_client_and_a_body_that_broke_off_differ(client: RegistryClient, program: WebProgram) -> None:
    slow = client.hub.blob(client.repo, random_bytes(LARGE, "slow"))
    fault = client.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=100_000))
    exchange = client.send("GET", f"/v2/{client.repo}/blobs/{slow}")
    assert exchange.read(1000)
    exchange.close()
    flow = program.flow(slow, "client error: disconnected; miss: ")
    assert flow["marked"] == ERROR
    assert flow["comment"].partition(" of 1 MB in ")[1], flow["comment"]
    client.hub.faults.remove(fault)
    broken = client.hub.blob(client.repo, random_bytes(LARGE, "broken"))
    fault = client.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=100_000, corrupt_at=900_000))
    exchange = client.send("GET", f"/v2/{client.repo}/blobs/{broken}")
    assert exchange.read(1000)  # the answer has begun, before the damage is noticed
    fault.release.set()
    assert not exchange.finish().complete
    exchange.close()
    client.hub.faults.remove(fault)
    flow = program.flow(broken, "upstream error: ")
    assert "does not match its digest" in flow["comment"]


def test_errors_say_whose_fault_they_are(client: RegistryClient, program: WebProgram) -> None:
    client.hub.image(client.repo, "1")
    client.manifest("none")
    assert program.flow(f"/{client.repo}/manifests/none")["comment"].startswith("upstream error 404: ")
    client.request("GET", "/v2/UPPER/manifests/1")
    assert program.flow("/UPPER/manifests/1")["comment"].startswith("client error 400: ")


def test_private_pull_and_push_are_marked(program: WebProgram) -> None:
    client = program.client("proxy")
    image = client.hub.image(client.repo, "1")
    client.hub.private(client.repo, {"alice": "secret"})
    basic = "Basic YWxpY2U6c2VjcmV0"
    token = client.token(f"repository:{client.repo}:pull,push", basic)
    assert program.flow(":pull,push")["comment"].startswith("token: the token service answered 200, ")
    answer = client.manifest("1", {"Authorization": f"Bearer {token}"})
    assert answer.body == image.manifest
    private = program.flow(f"/{client.repo}/manifests/1", ", answered 200, ")
    assert (private["marked"], response_size(private)) == ("→", len(image.manifest))
    client.request("PUT", f"/v2/{client.repo}/manifests/2", {"Authorization": f"Bearer {token}"}, image.manifest)
    push = program.flow(f"/{client.repo}/manifests/2", "push: to ")
    assert (push["marked"], push["request"]["contentLength"]) == ("↑", len(image.manifest))


def test_refused_connect_is_listed(program: WebProgram) -> None:
    with socket.create_connection(("127.0.0.1", program.proxy), TIMEOUT) as connection:
        connection.sendall(head("CONNECT", f"127.0.0.1:{program.status}", {"Host": "x"}))
        assert Exchange(connection, "CONNECT").status == 403
    flow = program.flow("", "refused: 127.0.0.1")
    assert (flow["request"]["method"], flow["response"]["status_code"], flow["marked"]) == ("CONNECT", 403, "!")


def test_tunnel_to_another_host_says_where_it_goes_and_how_much_it_carried(program: WebProgram) -> None:
    program.command_result("set", "show_ignored_hosts", "true")
    with program.tunnel("localhost", program.hub.ports["registry"]) as connection:
        connection.sendall(head("GET", "/v2/", {"Host": "localhost", "Connection": "close"}))
        assert Exchange(connection, "GET").finish().complete
    program.command_result("set", "show_ignored_hosts", "false")

    def tunnels() -> list[dict[str, Any]]:
        return [flow for flow in program.flows() if flow["type"] == "tcp" and " B in " in flow["comment"]]

    wait_until(tunnels)
    (flow,) = tunnels()
    assert flow["marked"] == "↔"
    assert flow["comment"].startswith("tunnel: to localhost, contents not decrypted, ")


def test_stale_tag_says_why(program: WebProgram) -> None:
    client = program.client("mirror")
    client.hub.image(client.repo, "1")
    client.manifest("1")
    program.command_result("set", "hubcache_tag_ttl", "0")
    fault = client.hub.faults.add(Fault(kind="manifest", status=503))
    client.manifest("1")
    program.command_result("set", "hubcache_tag_ttl", "600")
    client.hub.faults.remove(fault)
    flow = program.flow(f"/{client.repo}/manifests/1", "; served from the store")
    assert flow["marked"] == "≈"
    assert flow["comment"].startswith("stale: ")


def test_oldest_flows_are_removed(program: WebProgram) -> None:
    client = program.client("mirror")
    program.command_result("set", "hubcache_max_flows", "20")
    first = program.flows()[0]
    program.command_result("flow.mark", f"@{first['id']}", ":red_circle:")
    for _ in range(60):
        client.request("GET", "/v2/")
    program.command_result("set", "hubcache_max_flows", "2000")
    shown = program.flows()
    assert 20 <= len(shown) <= 22
    assert first["id"] in [flow["id"] for flow in shown]
    assert "Removed" not in program.log


def test_manifests_and_configs_are_shown_as_tables(program: WebProgram) -> None:
    client = program.client("mirror")
    image = client.hub.image(client.repo, "1", [random_bytes(LARGE, client.repo)])
    client.hub.index(client.repo, "all", {"linux/arm64": image})
    for reference in ("all", "1"):
        client.manifest(reference)
    for digest in (image.config, image.config):  # the second time it is small, stored content, which a flow keeps
        client.blob(digest)
        client.wait_until_stored()

    def view(path: str, comment: str = "") -> dict[str, Any]:
        flow = program.flow(path, comment)
        return dict(json.loads(program.fetch(f"/flows/{flow['id']}/response/content/auto.json")))

    index, manifest = view(f"/{client.repo}/manifests/all"), view(f"/{client.repo}/manifests/1")
    assert index["view_name"] == manifest["view_name"] == "OCI"
    (row,) = [line for line in index["text"].splitlines() if image.digest in line]
    assert row.split()[0] == "linux/arm64"
    (layer,) = [line for line in manifest["text"].splitlines() if line.startswith("layer 1")]
    assert layer.split()[2:5] == ["1", "MB", "no"]
    (config,) = [line for line in manifest["text"].splitlines() if line.startswith("config")]
    assert "yes" in config.split()
    shown = view(image.config, "hit: ")
    assert shown["view_name"] == "OCI"
    assert shown["text"].startswith("image config: linux/")


def test_commands_are_run(program: WebProgram) -> None:
    lines = program.command_result("hubcache.status")
    assert lines[0].startswith("hubcache ")
    program.command_result("hubcache.images")
    program.wait_for_log("hubcache: hubcache.images: ")
    with pytest.raises(AssertionError, match="is not the name of an image"):
        program.command_result("hubcache.pin", "UPPER CASE")
