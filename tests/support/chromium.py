"""A real browser for tests of pages: headless Chromium, driven through the DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from support.http_client import TIMEOUT
from support.required import require
from support.users import until

PROGRAM = "chromium"
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--mute-audio", "--hide-scrollbars", "--remote-debugging-port=0"),
)


class Tab:
    """A page of the browser, and what it reported: errors, and the addresses that it requested."""

    def __init__(self, browser: "Browser", target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session
        self.errors: list[str] = []
        """Errors on the console, exceptions of scripts, and violations of the page's policy."""
        self.requests: list[str] = []
        """URLs that the page requested."""

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and return its result."""
        return await self._browser.send(method, params, self._session)

    async def open(self, url: str) -> None:
        """Go to an address; returns when the document and its script are loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        result = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.evaluate(f"Boolean({script})"):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        """Return the text that an element shows."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window and whether the user prefers dark colours; return when this is drawn."""
        scheme = "dark" if dark else "light"
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.send(
            *("Emulation.setDeviceMetricsOverride",),
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        await self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save a picture of the window or, with `whole`, of the whole page."""
        taken = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(taken["data"]))

    def receive(self, method: str, params: dict[str, Any]) -> None:
        """Keep what an event reports."""
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.errors.append(str(params["entry"]))


class Browser:
    """A connection to a running Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def receive_messages(self) -> None:
        """Receive answers and events until the connection ends."""
        async for message in self._socket:
            received = json.loads(message.data)
            if "id" in received:
                self._waiting.pop(received["id"]).set_result(received)
            elif received.get("sessionId") in self._tabs:
                self._tabs[received["sessionId"]].receive(received["method"], received["params"])

    async def send(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        await self._socket.send_json(command)
        async with asyncio.timeout(TIMEOUT):
            received = await answer
        assert "error" not in received, (method, received["error"])
        return dict(received["result"])

    async def tab(self) -> Tab:
        """Open an empty page."""
        target = (await self.send("Target.createTarget", {"url": "about:blank"}))["targetId"]
        attached = await self.send("Target.attachToTarget", {"targetId": target, "flatten": True})
        tab = self._tabs[attached["sessionId"]] = Tab(self, target, attached["sessionId"])
        return tab


@asynccontextmanager
async def running_browser(proxy: int | None = None) -> AsyncIterator[Browser]:
    """Run Chromium with a new profile; it uses the proxy at this port of this machine, or none."""
    require(PROGRAM)
    profile = Path(tempfile.mkdtemp(prefix="hubcache-chromium-"))
    route = "--no-proxy-server" if proxy is None else f"--proxy-server=http://127.0.0.1:{proxy}"
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, *_ARGUMENTS, route, f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        address = profile / "DevToolsActivePort"  # the port, and the path of the browser's own target
        await until(lambda: address.exists() and address.read_text().count("\n") >= 1, TIMEOUT)
        port, path = address.read_text().split("\n")
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            browser = Browser(socket)
            receiving = asyncio.create_task(browser.receive_messages())
            yield browser
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving
    finally:
        process.kill()
        await process.wait()
        shutil.rmtree(profile, ignore_errors=True)
