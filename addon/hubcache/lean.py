"""Makes mitmproxy's hooks cheap: a client's connection has some ten of them, and each asks some 35 built-in addons.

Only few have a function for a given hook. Which, is looked up once, and again when an addon comes or goes. Rejected:
taking idle addons out of the chain, since any of their options may be set later.
"""

import inspect
from collections.abc import Callable
from typing import Any

from mitmproxy import addonmanager, exceptions, hooks


class Dispatcher:
    """Replaces `trigger_event` of an addon manager by one that does the same, faster."""

    def __init__(self, manager: addonmanager.AddonManager) -> None:
        self._manager = manager
        self._functions: dict[str, list[Callable[..., Any]]] = {}
        self._register, self._remove = manager.register, manager.remove
        manager.register, manager.remove = self.register, self.remove  # type: ignore[method-assign]
        manager.trigger_event = self.trigger_event  # type: ignore[method-assign]

    def register(self, addon: Any) -> Any:
        """As the manager's."""
        try:
            return self._register(addon)  # type: ignore[no-untyped-call]
        finally:
            self._functions.clear()

    def remove(self, addon: Any) -> None:
        """As the manager's."""
        try:
            self._remove(addon)  # type: ignore[no-untyped-call]
        finally:
            self._functions.clear()

    async def trigger_event(self, event: hooks.Hook) -> None:
        """As the manager's: each addon in turn, an error in one logged, `AddonHalt` the end."""
        arguments = event.args()
        for function in self._functions.get(event.name) or self._look_up(event):
            try:
                with addonmanager.safecall():
                    result = function(*arguments)
                    if result is not None and inspect.isawaitable(result):
                        await result
            except exceptions.AddonHalt:
                return

    def _look_up(self, event: hooks.Hook) -> list[Callable[..., Any]]:
        found = [function for addon in self._manager.chain for _, function in self._manager._iter_hooks(addon, event)]
        self._functions[event.name] = found
        return found


def install(manager: addonmanager.AddonManager) -> None:
    """Have this manager's hooks dispatched by a `Dispatcher`, unless they are (a script may be loaded again)."""
    if not isinstance(getattr(manager.trigger_event, "__self__", None), Dispatcher):
        Dispatcher(manager)
