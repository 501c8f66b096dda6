"""Serves the status page, `/healthz`, `/metrics`, `/evictions` and the set-up pages on the status listener."""

import asyncio
import json
import re
import socket
from dataclasses import asdict
from ipaddress import ip_address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..oci.errors import ConfigError
from ..setup.setup_pages import Page
from . import problems
from .events import Events
from .status_page import StatusPages
from .version import version

_INTERNAL = re.compile(r"[0-9a-z_-]+|.*\.(?:svc|local|localhost|internal)")
"""Names that cannot be registered in public DNS: single labels (a service of Docker Compose, or of the same Kubernetes
namespace), and names under domains that are reserved (RFC 6761, RFC 6762, ICANN's resolution on `internal`) or do not
exist (`svc`; `svc.cluster.local` ends in `local`)."""

_SHUTDOWN_SECONDS = 1.0
"""How long the end of the listener waits for answers that a client does not read."""


class Status:
    """The HTTP server of the status listener."""

    def __init__(self, pages: StatusPages) -> None:
        self._pages = pages
        self._report = pages.report
        self._events = Events(lambda: pages.snapshot(public=False))
        self._names = {socket.gethostname().lower()}
        app = web.Application(middlewares=[_host_check(self._names)])
        for path in ("/", "/status", "/status.json"):
            app.router.add_get(path, self._status_page)
        app.router.add_get("/events", self._events.serve, allow_head=False)
        app.on_shutdown.append(self._end_events)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/evictions", self._evictions)
        app.router.add_get("/metrics", self._render_metrics)
        app.router.add_get("/ca.crt", self._setup_page)
        app.router.add_get("/setup{rest:(/.*)?}", self._setup_page)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)

    async def start(self, host: str, port: int) -> None:
        """Start listening; raises `ConfigError` when the address cannot be used."""
        self._names.add(host.lower())
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"hubcache_status: cannot listen on {host}:{port}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Stop listening and close all connections."""
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        """Return 200, since pulls work; `status` is `degraded` while nothing can be stored or an upstream is down.

        A bucket that is down is a warning only: the cache works alone.
        """
        store = self._report.store
        fleet = self._report.fleet()
        circuits = self._report.breakers.circuits
        down = {host: circuit.reason for host, circuit in circuits.items() if circuit.is_open}
        report = {
            "version": version(),
            "status": "ok" if store.problem is None and not down else "degraded",
            "upstreams_down": down,
            "warnings": list(problems.fleet_problems(fleet, public=False)),
            "fleet": fleet and {"bucket": fleet["bucket"], "problem": fleet["problem"], "nodes": len(fleet["nodes"])},
            "store": {
                "directory": str(store.directory),
                "problem": store.problem,
                "bytes": store.usage.used,
                "capacity": store.capacity.max_bytes,
                "objects": len(store.usage.sizes),
                "damage": self._report.damage(),
                "scrub": asdict(store.scrub_status),
            },
        }
        return web.Response(text=json.dumps(report, indent=2) + "\n", content_type="application/json")

    async def _evictions(self, _: web.Request) -> web.Response:
        """Return the last removals with time and reason, the newest first."""
        return web.json_response(self._report.evictions())

    async def _status_page(self, request: web.Request) -> web.Response:
        return _response(self._pages.page(request.path, public=False))

    async def _end_events(self, _: web.Application) -> None:
        self._events.close()

    async def _setup_page(self, request: web.Request) -> web.Response:
        return _response(self._pages.setup.page(request.path, request.headers.get("Host", ""), request.remote or ""))

    async def _render_metrics(self, _: web.Request) -> web.Response:
        metrics = self._report.metrics
        metrics.tasks_counted(len(asyncio.all_tasks()))
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _response(page: Page | None) -> web.Response:
    if page is None:
        raise web.HTTPNotFound
    return web.Response(body=page.body, headers=page.headers)


def _host_check(names: set[str]) -> Middleware:
    """Return a middleware that answers 421 to requests for other host names, against DNS rebinding.

    A web page can make its own host name resolve to this listener's address, and then its scripts can read these pages
    from a browser behind the firewall. Names that an attacker cannot register are safe.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_own(request.headers.get("Host", ""), names):
            return await handler(request)
        text = "use an IP address, localhost, this machine's host name, or an internal name for the status listener\n"
        return web.Response(status=421, text=text)

    return check


def _is_own(host: str, names: set[str]) -> bool:
    """Whether a `Host` is empty, an IP address, one of these names, or one that public DNS cannot have."""
    name = re.sub(r":[0-9]*$", "", host).lower().removesuffix(".")
    if name in names or _INTERNAL.fullmatch(name) or not name:
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
