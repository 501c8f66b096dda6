"""The upstream faults of a soak."""

from collections.abc import Callable
from dataclasses import dataclass

from support.standin import Fault, Hub


@dataclass(frozen=True)
class Trouble:
    """One way in which the upstream fails; `end` undoes `begin`."""

    name: str
    begin: Callable[[Hub], None]

    @staticmethod
    def end(hub: Hub) -> None:
        """End all faults and start all servers again."""
        hub.faults.clear()
        hub.start()


def _fault(name: str, **fault: object) -> Trouble:
    return Trouble(name, lambda hub: _add(hub, Fault(**fault)))  # type: ignore[arg-type]


def _add(hub: Hub, fault: Fault) -> None:
    hub.faults.add(fault)


TROUBLES = (
    Trouble("registry refuses connections", lambda hub: hub.stop("registry")),
    Trouble("CDN refuses connections", lambda hub: hub.stop("cdn")),
    Trouble("token service refuses connections", lambda hub: hub.stop("token")),
    Trouble("everything refuses connections", lambda hub: hub.stop()),
    _fault("registry answers 503", kind="manifest", status=503),
    _fault("registry answers 429", kind="manifest", status=429, headers={"Retry-After": "1"}),
    _fault("registry answers HTML", kind="manifest", status=200, body="<html>maintenance</html>"),
    _fault("CDN answers 500", kind="cdn", status=500),
    _fault("CDN answers 403", kind="cdn", status=403),
    _fault("CDN breaks off", kind="cdn", close_after=200_000),
    _fault("CDN resets connections", kind="cdn", reset=True),
    _fault("CDN is slow", kind="cdn", rate=200_000),
    _fault("CDN sends wrong bytes", kind="cdn", corrupt_at=1000),
    _fault("CDN sends too many bytes", kind="cdn", extra=1000),
    _fault("CDN tells no length", kind="cdn", chunked=True),
    _fault("token service answers 500", kind="token", status=500),
    _fault("token service answers HTML", kind="token", status=200, body="<html>maintenance</html>"),
)
