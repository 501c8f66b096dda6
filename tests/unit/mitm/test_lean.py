"""Hooks are dispatched as mitmproxy does it; only the looking up is spared."""

import asyncio
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.mitm import lean
from mitmproxy import exceptions, log
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import commands, events, layer, mode_servers, server
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server_hooks import ClientConnectedHook
from support.mitm import taddons, tflow


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
    await manager.handle_lifecycle(event)
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
        first = manager.handle_lifecycle
        lean.install(manager)
        assert manager.handle_lifecycle == first


async def test_order_that_an_option_changes_is_the_new_one() -> None:
    """As mitmproxy's loader of scripts does it: no addon comes or goes."""
    notes: list[str] = []
    parent = Silent("parent", Heard("a", notes), Heard("b", notes))
    with taddons.context() as context:
        lean.install(context.master.addons)
        context.master.addons.add(parent)
        assert await told(context.master.addons, notes) == ["a", "b"]
        parent.addons = parent.addons[::-1]
        context.options.update(confdir="elsewhere")
        assert await told(context.master.addons, notes) == ["b", "a"]


async def test_log_is_told_to_addons_that_still_want_it_so_and_else_to_nobody() -> None:
    entries: list[log.LogEntry] = []
    calls: list[object] = []
    with taddons.context() as context:
        manager = context.master.addons
        lean.install(manager)
        original = manager.trigger

        def note(event: Any) -> None:
            calls.append(event)
            original(event)

        manager.trigger = note
        logging.getLogger("anything").warning("to nobody")
        await asyncio.sleep(0.01)
        assert calls == []
        manager.add(SimpleNamespace(name="old", add_log=entries.append))
        logging.getLogger("anything").warning("to one")
        await asyncio.sleep(0.01)
    assert [entry.msg.split("] ")[-1] for entry in entries] == ["to one"]


class Asking(layer.Layer):
    """A layer that asks its hook for each event, and notes what it sees."""

    def __init__(self, at: Any, notes: list[str]) -> None:
        super().__init__(at)
        self.notes = notes

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            self.notes.append(f"asks {event.data!r}")
            yield HttpRequestHook(tflow.tflow())
            self.notes.append(f"done {event.data!r}")
            yield commands.Log("goes on")


class Connection(lean.ConnectionHandler):
    """A client's connection that has one layer and no client."""

    def __init__(self, context: taddons.context, notes: list[str]) -> None:
        reader, writer = SimpleNamespace(), SimpleNamespace(get_extra_info=lambda _, default=None: ("127.0.0.1", 1))
        super().__init__(context.master, reader, writer, context.options, ProxyMode.parse("regular"))
        self.layer = Asking(self.layer.context, notes)

    async def receive(self, data: bytes) -> None:
        await self.server_event(events.DataReceived(self.client, data))


class Deciding:
    """An addon with the hook that `BlobAccess` asks for: what it does is set by the test."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.pause: asyncio.Event | None = None
        self.intercepts = False

    def request(self, flow: Any) -> Any:
        self.notes.append("hook")
        if self.intercepts:
            flow.intercept()
            self.notes.append("intercepted")
            asyncio.get_running_loop().call_later(0.01, flow.resume)
        return None if self.pause is None else self.pause.wait()

    def update(self, flows: Any) -> None:
        self.notes.append("update")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
async def context() -> AsyncIterator[taddons.context]:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as mitmproxy does
    with taddons.context(Proxyserver()) as running:
        lean.install(running.master.addons)
        yield running


@pytest.fixture
def deciding(context: taddons.context, notes: list[str]) -> Deciding:
    addon = Deciding(notes)
    context.master.addons.add(addon)
    return addon


async def test_hook_that_waits_for_nothing_is_done_when_the_event_is(
    context: taddons.context, deciding: Deciding, notes: list[str]
) -> None:
    await Connection(context, notes).receive(b"a")
    assert notes == ["asks b'a'", "hook", "update", "done b'a'"]


async def test_events_wait_for_a_hook_that_waits(
    context: taddons.context, deciding: Deciding, notes: list[str]
) -> None:
    deciding.pause = asyncio.Event()
    connection = Connection(context, notes)
    await connection.receive(b"a")
    await connection.receive(b"b")
    assert notes == ["asks b'a'", "hook"]
    assert not connection.timeout_watchdog.can_timeout.is_set()
    deciding.pause.set()
    await asyncio.sleep(0.01)
    assert notes == ["asks b'a'", "hook", "update", "done b'a'", "asks b'b'", "hook", "update", "done b'b'"]
    assert connection.timeout_watchdog.can_timeout.is_set()


async def test_flow_that_is_intercepted_waits_for_its_user(
    context: taddons.context, deciding: Deciding, notes: list[str]
) -> None:
    deciding.intercepts = True
    await Connection(context, notes).receive(b"a")
    assert notes == ["asks b'a'", "hook", "intercepted", "update"]
    await asyncio.sleep(0.05)
    assert notes[4:] == ["done b'a'"]


async def test_layers_hear_of_a_done_hook_although_its_connection_is_being_closed(
    context: taddons.context, deciding: Deciding, notes: list[str]
) -> None:
    connection = Connection(context, notes)
    lock = connection._server_event_lock
    waiting: list[asyncio.Task[bool]] = []

    def wait_in_line(_: Any) -> None:
        waiting.append(asyncio.ensure_future(lock.acquire()))  # another event, which the layers get before the hook's

    deciding.update = wait_in_line  # type: ignore[method-assign, assignment]
    closing = asyncio.ensure_future(connection.receive(b"a"))
    assert notes == ["asks b'a'", "hook"]
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert notes == ["asks b'a'", "hook"]
    await waiting[0]
    lock.release()
    await asyncio.sleep(0.01)
    assert notes == ["asks b'a'", "hook", "done b'a'"]


def test_names_of_mitmproxy_that_are_replaced_or_relied_on_are_those_that_it_uses() -> None:
    """Whoever sees this fail has a mitmproxy that does it in another way: read `lean.py` against it."""
    assert "ProxyConnectionHandler" in mode_servers.ServerInstance.handle_stream.__code__.co_names
    used = server.ConnectionHandler.server_event.__code__.co_names
    assert {"_server_event_lock", "hook_task", "handle_event", "StartHook"} <= set(used)
    assert {"handle_hook", "server_event", "HookCompleted"} <= set(server.ConnectionHandler.hook_task.__code__.co_names)
    original: Any = next(each for each in lean.ConnectionHandler.__mro__ if each.__module__ == mode_servers.__name__)
    assert "handle_lifecycle" in original.handle_hook.__code__.co_names
    assert {"trigger_event", "UpdateHook"} <= set(AddonManager.handle_lifecycle.__code__.co_names)


async def test_handler_of_new_connections_is_ours(context: taddons.context) -> None:
    assert mode_servers.ServerInstance.handle_stream.__globals__["ProxyConnectionHandler"] is lean.ConnectionHandler
