"""Programs that the fleet consists of."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

_START_SECONDS = 60.0
_POLL_SECONDS = 0.1
_LAST_LINES = 20


class StartFailed(Exception):
    """A program ended, or was not ready in time; the message ends with the last lines of output that was not shown."""


class Process:
    """A program in a session of its own: signals from the terminal reach it only through this one."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, show: Callable[[str], None] | None) -> None:
        self.name = name
        self._process = process
        self._last_lines = deque[str](maxlen=_LAST_LINES)
        self._reader = asyncio.create_task(self._read(show))

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str],
        show: Callable[[str], None] | None = None,
    ) -> Self:
        """Start a program; `show` receives the lines of its output."""
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 20,
        )
        return cls(name, process, show)

    async def wait_until(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until the program is ready; raises `StartFailed`."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await is_ready():
                    if self._process.returncode is not None:
                        await self._reader
                        raise StartFailed(f"{self.name} ended with status {self._process.returncode}{self._output}")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise StartFailed(f"{self.name} was not ready in {_START_SECONDS:g} seconds{self._output}") from error

    async def wait(self) -> int:
        """Wait until the program has ended, and return its exit status."""
        status = await self._process.wait()
        await self._reader
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the program has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def end(self, seconds: float) -> None:
        """Wait until the program has ended, and after this time kill it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End the program and those that it has started, without waiting for their work."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.wait()

    @property
    def _output(self) -> str:
        return "".join(f"\n  {line}" for line in self._last_lines)

    async def _read(self, show: Callable[[str], None] | None) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            text = line.decode(errors="replace").rstrip()
            if show is None:
                self._last_lines.append(text)
            else:
                show(text)
