"""Finds out which of mitmproxy's hooks the user's addons implement."""

from mitmproxy import addonmanager

_KNOWN = ("mitmproxy.addons.", f"{__name__.partition('.')[0]}.")
"""Packages of addons that are no others: mitmproxy's own, which depend on options alone, and those of this program."""


class OtherAddons:
    """The addons of `manager` that belong neither to mitmproxy nor to this program: scripts of the user."""

    def __init__(self, manager: addonmanager.AddonManager) -> None:
        self._manager = manager
        self._registered: list[object] = []
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often addons were added, removed or loaded again so far. Cheap enough to be read for each connection:
        the manager keeps all addons in one table, which is compared by identity."""
        # mitmproxy 12.3.1: AddonManager.lookup. Without it a script that is loaded later would not be noticed.
        registered = list(self._manager.lookup.values())
        if registered != self._registered:
            self._registered = registered
            self._changes += 1
        return self._changes

    def listen_to(self, hook: str) -> bool:
        """Whether any of the user's addons implements the hook."""
        # mitmproxy 12.3.1: traverse. Without it scripts would not see clients that bypass mitmproxy.
        return any(
            callable(getattr(addon, hook, None))
            for addon in addonmanager.traverse(self._manager.chain)
            if not type(addon).__module__.startswith(_KNOWN)
        )
