"""Finds out which of mitmproxy's hooks addons of the user listen to."""

from collections.abc import Iterable

from mitmproxy import addonmanager

_BUILT_IN = "mitmproxy.addons."
"""The package of mitmproxy's own addons. What they do with a client is decided by options alone."""


class OtherAddons:
    """The addons of `manager` that are neither mitmproxy's own nor in `own`: scripts of the user."""

    def __init__(self, manager: addonmanager.AddonManager, own: Iterable[object]) -> None:
        self._manager = manager
        self._own = tuple(own)
        self._registered: list[object] = []
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often addons were added, removed or loaded again so far. Cheap enough to be read for each connection:
        the manager keeps all addons in one table, which is compared by identity."""
        registered = list(self._manager.lookup.values())
        if registered != self._registered:
            self._registered = registered
            self._changes += 1
        return self._changes

    def listen_to(self, hook: str) -> bool:
        """Whether any of them has a function for the hook."""
        return any(
            callable(getattr(addon, hook, None))
            for addon in addonmanager.traverse(self._manager.chain)
            if not any(addon is each for each in self._own) and not type(addon).__module__.startswith(_BUILT_IN)
        )
