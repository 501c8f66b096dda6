"""The requests of a Docker Engine 29 at the real program's doors: mitmdump, with workers too, and mitmweb."""

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
    options: dict[str, str | list[str]] = {"hubcache_tag_ttl": "600"}
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
    for one in engine29.asked(action, index):
        answer = client.request(one.method, one.at_registry if client.is_proxy else one.path, one.headers)
        assert (answer.status, answer.complete) == (one.expected, True), one
        if answer.status == 404:
            assert answer.failure == (404, "MANIFEST_UNKNOWN")
    client.wait_until_stored()


def test_warm_pull_asks_nobody_and_an_outage_is_none(client: RegistryClient) -> None:
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
def test_pull_without_contact_to_any_upstream(name: str) -> None:
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
