"""The status listener: `/healthz` for load balancers and people, `/metrics` for Prometheus, `/evictions` to explain."""

import asyncio
import json
import re
import socket
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..oci.errors import ConfigError
from ..store.store import Store
from ..transfer.breaker import CircuitBreakers
from .metrics import Metrics

_INTERNAL = re.compile(r"[0-9a-z_-]+|.*\.(?:svc|local|localhost|internal)")
"""Names that nobody can register: with one label (a service of Compose, or of the same namespace of Kubernetes), and
under domains that are not in public DNS (RFC 6761, RFC 6762, ICANN's resolution on `internal`; `svc` is no domain of
the root, and `svc.cluster.local` ends in `local`)."""


class Status:
    """An HTTP listener of its own, apart from the proxy's ports."""

    def __init__(self, store: Store, metrics: Metrics, breakers: CircuitBreakers) -> None:
        self._store = store
        self._breakers = breakers
        self._metrics = metrics
        self._names = {socket.gethostname().lower()}
        app = web.Application(middlewares=[_host_check(self._names)])
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/evictions", self._evictions)
        app.router.add_get("/metrics", self._render_metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, host: str, port: int) -> None:
        """Listen; raises `ConfigError` when the address cannot be used."""
        self._names.add(host.lower())
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"hubcache_status: cannot listen on {host}:{port}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        """200 as long as pulls work. `status` is `degraded` while nothing can be stored or an upstream is down."""
        problem = self._store.problem
        down = {host: circuit.reason for host, circuit in self._breakers.circuits.items() if circuit.is_open}
        report = {
            "status": "ok" if problem is None and not down else "degraded",
            "upstreams_down": down,
            "store": {
                "directory": str(self._store.directory),
                "problem": problem,
                "bytes": self._store.ledger.used,
                "capacity": self._store.rooms.capacity,
                "objects": len(self._store.ledger.sizes),
                "damage": self._damage(),
                "scrub": asdict(self._store.scrubbed),
            },
        }
        return web.Response(text=json.dumps(report, indent=2) + "\n", content_type="application/json")

    def _damage(self) -> dict[str, Any]:
        """How often stored content was found damaged since the start, and the last time."""
        last = self._store.last_damage
        told = None
        if last is not None:
            told = {"at": last.at, "digest": last.digest, "why": last.why}
            told |= {"path": last.path and str(last.path), "kept": last.kept and str(last.kept)}
        return {"count": self._store.damages, "quarantined_bytes": self._store.ledger.quarantined, "last": told}

    async def _evictions(self, _: web.Request) -> web.Response:
        """The last removals, the newest first: what, when and why."""
        lines = [
            {"at": removal.at, "digest": str(removal.eviction.key)}
            | {name: getattr(removal.eviction, name) for name in ("size", "reason", "score", "requests", "idle")}
            for removal in reversed(self._store.rooms.history)
        ]
        return web.json_response(lines)

    async def _render_metrics(self, _: web.Request) -> web.Response:
        self._metrics.tasks_counted(len(asyncio.all_tasks()))
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


def _host_check(names: set[str]) -> Middleware:
    """A page that somebody's browser shows may give its own name our address (DNS rebinding), and then read what is
    here, past all firewalls. So the name is to be one of these, or one that nobody else can have."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_own(request.headers.get("Host", ""), names):
            return await handler(request)
        text = "the status listener answers to an IP address, localhost, its host's name, or an internal name\n"
        return web.Response(status=421, text=text)

    return check


def _is_own(host: str, names: set[str]) -> bool:
    """Whether a `Host` is none, an address, one of these names, or one that public DNS does not have."""
    name = re.sub(r":[0-9]*$", "", host).lower().removesuffix(".")
    if name in names or _INTERNAL.fullmatch(name) or not name:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
