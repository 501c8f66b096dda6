"""Hooks are dispatched as mitmproxy does it; only the looking up is spared."""

import asyncio
from typing import Any

import pytest
from hubcache import lean
from mitm import taddons
from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.proxy.server_hooks import ClientConnectedHook


class Heard:
    """An addon that notes that it was called."""

    def __init__(self, name: str, notes: list[str], error: Exception | None = None) -> None:
        self.name = name
        self.notes = notes
        self.error = error

    def client_connected(self, _: object) -> None:
        self.notes.append(self.name)
        if self.error is not None:
            raise self.error


class Slow(Heard):
    """One that takes its time."""

    async def client_connected(self, _: object) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.notes.append(self.name)


class Silent:
    """One without the hook, but with children that have it."""

    def __init__(self, name: str, *children: Heard) -> None:
        self.name = name
        self.addons = children


async def told(manager: AddonManager, notes: list[str]) -> list[str]:
    notes.clear()
    event: Any = ClientConnectedHook(object())  # type: ignore[arg-type]
    await manager.trigger_event(event)
    return list(notes)


@pytest.mark.parametrize("dispatched", [False, True], ids=["mitmproxy", "lean"])
async def test_all_are_called_in_turn_whatever_one_of_them_does(dispatched: bool) -> None:
    """The same test for both: what mitmproxy does is what is wanted."""
    notes: list[str] = []
    with taddons.context() as context:
        manager = context.master.addons
        if dispatched:
            lean.install(manager)
        manager.add(Heard("first", notes), Silent("none", Slow("child", notes)), Heard("bad", notes, ValueError("x")))
        manager.add(Heard("last", notes))
        assert await told(manager, notes) == ["first", "child", "bad", "last"]
        manager.add(later := Heard("later", notes))
        assert await told(manager, notes) == ["first", "child", "bad", "last", "later"]
        manager.remove(later)
        manager.remove(manager.get("none"))
        assert await told(manager, notes) == ["first", "bad", "last"]
        manager.add(Heard("halt", notes, exceptions.AddonHalt()), Heard("unheard", notes))
        assert await told(manager, notes) == ["first", "bad", "last", "halt"]


async def test_it_is_installed_once() -> None:
    with taddons.context() as context:
        manager = context.master.addons
        lean.install(manager)
        first = manager.trigger_event
        lean.install(manager)
        assert manager.trigger_event == first
