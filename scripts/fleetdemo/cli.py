"""Runs the fleet until Ctrl-C."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from .cache import Cache, place
from .ports import Ports
from .process import Process, StartFailed
from .seaweedfs import BUCKET, SeaweedFS

_MOST = 8
_OWN = ("--web", "--proxy-port", "--mirror-port", "--mode", "-m", "--dir")
"""Arguments of scripts/serve that say what differs between the caches."""

_STOP_SECONDS = 120.0
"""Longest wait for the end of a cache: it lets downloads end for some time."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run the fleet that the arguments name, and return the exit status."""
    count, others = _parse(arguments)
    return asyncio.run(_Demo(count, others).run())


def _parse(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Return the number of caches, and the arguments that each cache gets."""
    parser = argparse.ArgumentParser("scripts/serve", allow_abbrev=False, add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("--fleet-demo", type=int, choices=range(2, _MOST + 1), metavar="N", required=True)
    known, others = parser.parse_known_args(arguments)
    for argument in others:
        if argument.partition("=")[0] in _OWN or argument.startswith("-m"):
            parser.error(f"{argument} cannot be combined with --fleet-demo, which gives each cache its own")
    return known.fleet_demo, others


class _Demo:
    """One run, in a temporary directory."""

    def __init__(self, count: int, arguments: Sequence[str]) -> None:
        self._count, self._arguments = count, list(arguments)
        self._running: list[Process] = []
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run until a signal or the end of all caches; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        directory = Path(tempfile.mkdtemp(prefix="hubcache-fleet-"))  # only its owner can read it
        try:
            return await self._run_in(directory)
        except StartFailed as error:
            _say(f"hubcache: {error}")
            return 1
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _run_in(self, directory: Path) -> int:
        ports = Ports()
        caches = [place(number, directory, ports) for number in range(1, self._count + 1)]
        seaweedfs = SeaweedFS(directory / "seaweedfs", ports)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(seaweedfs.kill)
            stack.push_async_callback(self._end_caches)
            if await self._unless_stopped(self._start(seaweedfs, caches)):
                _say(_introduction(caches, seaweedfs.url, self._arguments))
                await self._unless_stopped(self._watch(seaweedfs))
            status = 0 if self._stopping.is_set() else 1
        return status

    async def _start(self, seaweedfs: SeaweedFS, caches: Sequence[Cache]) -> None:
        _say(f"hubcache: starting SeaweedFS and {len(caches)} caches")
        environment = _environment()
        await seaweedfs.start(environment)
        environment |= seaweedfs.variables
        await self._start_cache(caches[0], environment)  # before the others, which use the CA that it creates
        await asyncio.gather(*(self._start_cache(cache, environment) for cache in caches[1:]))

    async def _start_cache(self, cache: Cache, environment: Mapping[str, str]) -> None:
        process = await cache.start(self._arguments, environment, lambda line: _say(f"{cache.name} | {line}"))
        self._running.append(process)
        await process.wait_until(cache.serves)

    async def _watch(self, seaweedfs: SeaweedFS) -> None:
        """Wait until all caches have ended, and report each program that ends: the others continue."""

        async def report(process: Process) -> None:
            _say(f"hubcache: {process.name} has ended with status {await process.wait()}; the others continue")

        parts = [asyncio.create_task(report(process)) for process in seaweedfs.processes]
        try:
            await asyncio.gather(*map(report, self._running))
        finally:
            for part in parts:
                part.cancel()
        _say("hubcache: all caches have ended")

    async def _unless_stopped(self, work: Coroutine[None, None, None]) -> bool:
        """Run work until its end or a signal; returns whether it has ended."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
            return False
        await working
        return True

    def _stop(self) -> None:
        """End all caches; one that receives a second signal no longer waits for its downloads."""
        self._stopping.set()
        for process in self._running:
            process.send(signal.SIGTERM)  # at SIGINT, a Python that starts would print a traceback

    async def _end_caches(self) -> None:
        if not self._stopping.is_set():
            self._stop()
        await asyncio.gather(*(process.end(_STOP_SECONDS) for process in self._running))


def _environment() -> dict[str, str]:
    """Return the variables of all programs: without settings of AWS clients, and without a proxy to loopback."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    for name in ("NO_PROXY", "no_proxy"):
        found[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    return found


def _introduction(caches: Sequence[Cache], url: str, arguments: Sequence[str]) -> str:
    """Return the table of addresses, and how to try the fleet."""
    rows = [("cache", "proxy", "mirror", "status page", "for other caches")]
    rows += [
        (
            *(str(cache.number), f"127.0.0.1:{cache.proxy}", f"127.0.0.1:{cache.mirror}"),
            *(f"http://127.0.0.1:{cache.status}/", f"127.0.0.1:{cache.peers}"),
        )
        for cache in caches
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    image = "IMAGE" if any("hubcache_registries" in argument for argument in arguments) else "library/alpine"
    first, second = (f"127.0.0.1:{cache.mirror}/{image}" for cache in caches[:2])
    return "\n".join(
        (
            "",
            f"{len(caches)} caches share the bucket {BUCKET} of SeaweedFS at {url}.",
            "",
            *(f"  {line}" for line in table),
            "",
            "The second of these pulls receives its content from the bucket, and not from the registry:",
            "",
            f"  docker pull {first}",
            f"  docker image rm {first}",
            f"  docker pull {second}",
            "",
            f"  scripts/hubcache fleet --dir {caches[0].store}    # shows the fleet",
            "",
            "Ctrl-C stops all, and removes the bucket and the stores.",
            "",
        )
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
