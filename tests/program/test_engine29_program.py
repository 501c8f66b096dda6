"""The requests of a Docker Engine 29 at both listeners of mitmdump, of mitmdump with workers, and of mitmweb."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import engine29
from support.engine29 import ACTIONS, attested
from support.ports import free_port
from support.program import LISTENERS, Program, RegistryClient, running_program
from support.standin import Hub, Image


@pytest.fixture(scope="module", params=["mitmdump", "workers", "mitmweb"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    name = "mitmweb" if request.param == "mitmweb" else "mitmdump"
    options = {"hubcache_tag_ttl": "600"}
    if request.param == "workers":
        options["hubcache_workers"] = "2"
    with Hub() as hub:
        program = Program(tmp_path_factory.mktemp(name), hub, options)
        program.command[0] = str(Path(sys.executable).with_name(name))
        if name == "mitmweb":
            program.command += ["--set", "web_open_browser=false", "--set", f"web_port={free_port()}"]
        program.start()
        try:
            yield program
            program.assert_no_errors()
        finally:
            program.stop()


@pytest.fixture(params=LISTENERS)
def client(request: pytest.FixtureRequest, program: Program) -> Iterator[RegistryClient]:
    program.reset()
    yield program.client(request.param)
    program.assert_no_errors()


def replay(client: RegistryClient, index: Image, action: str) -> None:
    """Send the recorded requests of an action; each must have the status with which the engine goes on."""
    requests = list(engine29.recorded_requests(action, index))
    assert requests
    for recorded in requests:
        path = recorded.at_registry if client.is_proxy else recorded.path
        answer = client.request(recorded.method, path, recorded.headers)
        assert (answer.status, answer.complete) == (recorded.expected, True), recorded
        if answer.status == 404:
            assert answer.failure == (404, "MANIFEST_UNKNOWN")
    client.wait_until_stored()


def test_warm_pull_sends_no_request_upstream_and_succeeds_in_an_outage(client: RegistryClient) -> None:
    index = attested(client.hub, client.repo)
    replay(client, index, "pull")
    client.hub.reset_log()
    for action in ACTIONS:
        replay(client, index, action)
    assert client.hub.count() == 0
    client.hub.stop()
    for action in ACTIONS:
        replay(client, index, action)


@pytest.mark.parametrize("name", LISTENERS)
def test_offline_program_serves_stored_images_without_any_request_upstream(name: str) -> None:
    with running_program(hubcache_tag_ttl="0") as program:
        client = program.client(name)
        index = attested(program.hub, client.repo)
        replay(client, index, "pull")
        program.stop()
        program.command += ["--set", "hubcache_offline=true"]
        program.start()
        program.hub.reset_log()
        for action in ACTIONS:
            replay(client, index, action)
        assert program.hub.count() == 0
