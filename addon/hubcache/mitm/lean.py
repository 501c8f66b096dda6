"""Makes mitmproxy's hooks cheap: a client's connection has some fifteen of them, and each asks some 35 built-in addons.

Only few have a function for a given hook. Which, is looked up once, and again when an addon comes or goes or an option
changes. Rejected: taking idle addons out of the chain, since any of their options may be set later.

mitmproxy also makes a task of each hook, and has it wait for the layers before it tells them that the hook is done.
What has nothing to wait for is done at once.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from mitmproxy import addonmanager, exceptions, flow, hooks
from mitmproxy.proxy import commands, events, mode_servers
from mitmproxy.utils import asyncio_utils


class Dispatcher:
    """Replaces those methods of an addon manager that are called all the time by ones that do the same, faster."""

    def __init__(self, manager: addonmanager.AddonManager) -> None:
        self._manager = manager
        self._functions: dict[str, list[Callable[..., Any]]] = {}
        self.changes = 0
        """How often an addon came or went, or an option changed."""
        self._register, self._remove = manager.register, manager.remove
        manager.register, manager.remove = self.register, self.remove  # type: ignore[method-assign]
        manager.handle_lifecycle = self.handle_lifecycle  # type: ignore[method-assign]
        manager.master.options.changed.connect(self._options_changed)
        for handler in logging.getLogger().handlers:
            # mitmproxy tells addons each line of its log, in a way that is deprecated and wakes the event loop.
            if type(handler).__name__ == "LegacyLogEvents" and vars(handler).get("master") is manager.master:
                handler.addFilter(lambda _: bool(self.functions("add_log")))

    def register(self, addon: Any) -> Any:
        """As the manager's."""
        try:
            return self._register(addon)  # type: ignore[no-untyped-call]
        finally:
            self._forget()

    def remove(self, addon: Any) -> None:
        """As the manager's."""
        try:
            self._remove(addon)  # type: ignore[no-untyped-call]
        finally:
            self._forget()

    def _options_changed(self, updated: set[str]) -> None:
        self._forget()  # the order of scripts is an option

    def _forget(self) -> None:
        self._functions.clear()
        self.changes += 1

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        """As the manager's: each addon in turn, an error in one logged, `AddonHalt` the end; then `update`."""
        rest = self.begin(event)
        if rest is not None:
            await rest

    def begin(self, event: hooks.Hook) -> Coroutine[Any, Any, None] | None:
        """As `handle_lifecycle`, but what remains once something must be awaited is returned; None when all is done."""
        (data,) = event.args()
        rest = self._call(iter(self.functions(event.name)), data)
        if not isinstance(data, flow.Flow):
            return rest
        update = hooks.UpdateHook([data])
        if rest is not None:
            return self._then(rest, update)
        return self._call(iter(self.functions(update.name)), update.flows)

    async def _then(self, rest: Coroutine[Any, Any, None], update: hooks.UpdateHook) -> None:
        await rest
        rest_of_update = self._call(iter(self.functions(update.name)), update.flows)
        if rest_of_update is not None:
            await rest_of_update

    def _call(self, functions: Iterator[Callable[..., Any]], data: Any) -> Coroutine[Any, Any, None] | None:
        for function in functions:
            try:
                with addonmanager.safecall():
                    result = function(data)
                    if result is not None and inspect.isawaitable(result):
                        return self._await(result, functions, data)
            except exceptions.AddonHalt:
                return None
        return None

    async def _await(self, result: Awaitable[Any], functions: Iterator[Callable[..., Any]], data: Any) -> None:
        try:
            with addonmanager.safecall():
                await result
        except exceptions.AddonHalt:
            return
        rest = self._call(functions, data)
        if rest is not None:
            await rest

    def functions(self, hook: str) -> list[Callable[..., Any]]:
        """Those of all addons for a hook, in their order."""
        found = self._functions.get(hook)
        if found is None:
            addons = addonmanager.traverse(self._manager.chain)
            found = [function for addon in addons if callable(function := getattr(addon, hook, None))]
            self._functions[hook] = found
        return found


class ConnectionHandler(mode_servers.ProxyConnectionHandler):
    """mitmproxy's for one client's connection, without what it does for hooks that might have to wait, for those that
    do not."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)  # type: ignore[no-untyped-call]
        self._done: deque[events.Event] = deque()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """As mitmproxy's, which stops the watch for idle clients while a hook waits, and waits while a flow is
        intercepted."""
        found = _dispatcher(self.master.addons)
        if found is None:
            return await super().handle_hook(hook)
        rest = found.begin(hook)
        (data,) = hook.args()
        is_flow = isinstance(data, flow.Flow)
        if rest is not None or (is_flow and data.intercepted):
            with self.timeout_watchdog.disarm():
                if rest is not None:
                    await rest
                if is_flow:
                    await data.wait_for_resume()

    async def hook_task(self, hook: commands.StartHook) -> None:
        """As mitmproxy's; what is done while the layers still work is noted for when they have come to an end."""
        await self.handle_hook(hook)
        if hook.blocking:
            done = events.HookCompleted(hook)
            if self._server_event_lock.locked():
                self._done.append(done)
            else:
                await self.server_event(done)

    async def server_event(self, event: events.Event) -> None:
        """As mitmproxy's; then tell what is done."""
        await super().server_event(event)
        while self._done:
            done = self._done.popleft()
            try:
                await super().server_event(done)
            except asyncio.CancelledError:  # while it waited for its turn: the layers must hear of it all the same
                asyncio_utils.create_task(self.server_event(done), name="completed hook", keep_ref=True)
                raise


def install(manager: addonmanager.AddonManager) -> Dispatcher:
    """Have this manager's hooks dispatched in this way, unless they are (a script may be loaded again).

    mitmproxy has no public way to choose the handler: it takes what has this name in the module.
    """
    mode_servers.ProxyConnectionHandler = ConnectionHandler  # type: ignore[misc]
    return _dispatcher(manager) or Dispatcher(manager)


def _dispatcher(manager: addonmanager.AddonManager) -> Dispatcher | None:
    found = getattr(manager.handle_lifecycle, "__self__", None)
    return found if isinstance(found, Dispatcher) else None
