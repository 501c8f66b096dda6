"""The requests of a Docker Engine 29 at the real program's doors: mitmdump, with workers too, and mitmweb."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import engine29, program
from support.engine29 import ACTIONS, attested
from support.ports import free_port
from support.program import DOORS, Door, Product, Rig
from support.standin import Hub, Image


@pytest.fixture(scope="module", params=["mitmdump", "workers", "mitmweb"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    program = "mitmweb" if request.param == "mitmweb" else "mitmdump"
    options: dict[str, str | list[str]] = {"hubcache_tag_ttl": "600"}
    if request.param == "workers":
        options["hubcache_workers"] = "2"
    with Hub() as hub:
        product = Product(tmp_path_factory.mktemp(program), hub, options)
        product.command[0] = str(Path(sys.executable).with_name(program))
        if program == "mitmweb":
            product.command += ["--set", "web_open_browser=false", "--set", f"web_port={free_port()}"]
        product.start()
        try:
            found = Rig(hub, product)
            yield found
            found.check()
        finally:
            product.stop()


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Door]:
    rig.refresh()
    yield rig.door(request.param)
    rig.check()


def replay(door: Door, index: Image, action: str) -> None:
    for one in engine29.asked(action, index):
        answer = door.request(one.method, one.at_registry if door.is_proxy else one.path, one.headers)
        assert (answer.status, answer.complete) == (one.expected, True), one
        if answer.status == 404:
            assert answer.failure == (404, "MANIFEST_UNKNOWN")
    door.settle()


def test_warm_pull_asks_nobody_and_an_outage_is_none(door: Door) -> None:
    index = attested(door.hub, door.repo)
    replay(door, index, "pull")
    door.hub.reset_log()
    for action in ACTIONS:
        replay(door, index, action)
    assert door.hub.count() == 0
    door.hub.stop()
    for action in ACTIONS:
        replay(door, index, action)


@pytest.mark.parametrize("name", DOORS)
def test_pull_without_contact_to_any_upstream(name: str) -> None:
    with program.running(hubcache_tag_ttl="0") as rig:
        door = rig.door(name)
        index = attested(rig.hub, door.repo)
        replay(door, index, "pull")
        rig.product.stop()
        rig.product.command += ["--set", "hubcache_offline=true"]
        rig.product.start()
        rig.hub.reset_log()
        for action in ACTIONS:
            replay(door, index, action)
        assert rig.hub.count() == 0
