"""The status page in a real browser: it shows what clients do, and updates itself."""

import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from hubcache.operate.fleet_report import report_fleet
from hubcache.operate.traffic import Traffic
from support.chromium import Browser, Tab, running_browser
from support.fleet_statuses import fleet_status
from support.http_client import request, wait_until
from support.program import Program, RegistryClient, running_program
from support.standin import Image, random_bytes
from support.worker_processes import at_work

HOSTILE = "<img src=x onerror=alert(1)>"


in_module_loop = pytest.mark.asyncio(loop_scope="module")
"""The browser serves all tests of this module, and its connection belongs to one event loop."""


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """Two workers, so that what they serve has to reach the process that has the page."""
    with running_program(None, hubcache_workers="2") as running:
        wait_until(lambda: at_work(running))
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as started:
        yield started


def image(program: Program, name: str) -> Image:
    return program.hub.image(f"library/{name}", "1", [random_bytes(300_000, name)])


def pull(client: RegistryClient, pulled: Image) -> None:
    """Pull an image, and wait until it is stored."""
    assert client.manifest("1", repo=pulled.repo).status == 200
    for digest in (pulled.config, *pulled.layers):
        assert client.blob(digest, repo=pulled.repo).status == 200
    client.wait_until_stored()


async def open_page(browser: Browser, program: Program) -> Tab:
    tab = await browser.tab()
    await tab.open(f"http://127.0.0.1:{program.status}/")
    await tab.wait_for("report !== null")
    return tab


@in_module_loop
async def test_page_shows_a_pull_by_events_without_a_reload(browser: Browser, program: Program) -> None:
    tab = await open_page(browser, program)
    assert await tab.text("#state") == "✓ No problems"
    await tab.evaluate("window.opened = true")
    pulled = image(program, "shown")
    for listener in ("proxy", "mirror"):
        pull(program.client(listener), pulled)
    for listener in ("proxy", "mirror"):
        await tab.wait_for(
            f"[...document.querySelectorAll('#pulls tr')].some(row => "
            f"row.innerText.includes('shown:1') && row.innerText.includes('{listener}'))"
        )
    await tab.wait_for("document.querySelector('#hits').innerText.includes('%')")
    assert await tab.evaluate("window.opened"), "the page was not loaded again"
    assert "127.0.0.1" in await tab.text("#pulls")
    assert "2 processes serve clients" in await tab.text("#about")
    own = f"http://127.0.0.1:{program.status}"
    assert set(tab.requests) == {f"{own}/", f"{own}/events"}
    assert tab.errors == []


@in_module_loop
async def test_page_that_becomes_visible_listens_once(browser: Browser, program: Program) -> None:
    """A page that was opened in the background listens already."""
    tab = await open_page(browser, program)
    await tab.evaluate("window.first = source, document.dispatchEvent(new Event('visibilitychange')), 0")
    assert await tab.evaluate("first !== source && first.readyState === EventSource.CLOSED")
    await tab.wait_for("source.readyState === EventSource.OPEN")
    assert tab.errors == []


@in_module_loop
@pytest.mark.parametrize("dark", [False, True])
async def test_page_fits_wide_and_narrow_windows(browser: Browser, program: Program, dark: bool) -> None:
    pull(program.client("mirror"), image(program, "a-rather-long-name/of-an-image/which-does-not-fit-a-telephone"))
    tab = await open_page(browser, program)
    for width in (1200, 390, 320):
        await tab.look(width=width, dark=dark)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width
    background = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(each) for each in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(channels) < 60) is dark
    assert (min(channels) > 200) is not dark
    assert tab.errors == []


@in_module_loop
async def test_hostile_names_and_reasons_are_text(browser: Browser, program: Program) -> None:
    """Names come from clients, and reasons from upstreams."""
    tab = await open_page(browser, program)
    snapshot = json.loads(program.status_page("/status.json"))
    snapshot["problems"] = [HOSTILE]
    snapshot["upstreams"] = [{"registry": HOSTILE, "is_up": False, "reason": HOSTILE}]
    snapshot["ratelimit"] = [{"registry": HOSTILE, "credential": HOSTILE, "limit": 1, "remaining": 1, "at": 1}]
    snapshot["images"] = [{"name": HOSTILE, "requests": 1, "bytes": 1, "last": 1}]
    snapshot["store"]["directory"] = snapshot["store"]["problem"] = HOSTILE
    snapshot["fills"] = [
        {"digest": HOSTILE, "image": HOSTILE, "received": 1, "size": 2, "readers": 1, "started": 1, "is_waiting": False}
    ]
    numbers = dict.fromkeys(("sent", "from_store", "from_upstream", "requests", "requests_upstream"), 1)
    pulled = dict.fromkeys(("client", "listener", "image", "result", "slowest", "error"), HOSTILE) | numbers
    pulled |= {"started": 1, "duration": 1, "slowest_seconds": 1}
    snapshot["pulls"] = {"running": [pulled], "recent": [pulled | {"error": ""}]}
    snapshot["evictions"] = [{"at": 1, "digest": HOSTILE, "image": HOSTILE, "size": 1, "reason": HOSTILE, "idle": 1}]
    node = {"id": HOSTILE, "address": HOSTILE, "version": HOSTILE, "is_own": False}
    snapshot["fleet"] = report_fleet(fleet_status(), Traffic(), 1) | {"problem": HOSTILE, "nodes": [node]}
    await tab.evaluate(f"source.close(), receive({json.dumps(snapshot)})")
    shown = await tab.text("body")
    assert shown.count(HOSTILE) >= 19
    assert await tab.evaluate("document.querySelectorAll('img, [onerror]').length") == 0
    assert tab.errors == []


@in_module_loop
async def test_fleet_is_shown_where_there_is_one(browser: Browser, program: Program) -> None:
    tab = await open_page(browser, program)
    assert await tab.evaluate("find('fleet').hidden")
    snapshot = json.loads(program.status_page("/status.json"))
    assert snapshot["fleet"] is None
    snapshot["fleet"] = report_fleet(fleet_status(), Traffic(bytes_from_store=7 << 30, upstream_bytes=1 << 20), 1000)
    await tab.evaluate(f"source.close(), receive({json.dumps(snapshot)})")
    shown = (await tab.text("#fleet")).replace("\xa0", " ")
    for words in (
        *("60.0 GiB of 100.0 GiB used (60 %)", "s3://caches/prod", "by two-00decade, 12 objects deleted"),
        *("7.0 GiB from the store, 3.0 GiB from the bucket, 1.0 GiB from other nodes, 1.0 MiB from registries",),
        *("40 stored, 2 queued, 1 found no space, 3 failed", "1,020 to the bucket, $2.23 per million pulls"),
        *("1 held by this node", "one-00c0ffee", "this node", "http://10.0.0.2:5002"),
    ):
        assert words in shown
    for width in (1200, 320):
        await tab.look(width=width)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width
    snapshot["fleet"] = report_fleet(fleet_status(sweep=None, problem="status 403"), Traffic(), 0)
    await tab.evaluate(f"receive({json.dumps(snapshot)})")
    assert "status 403" in await tab.text("#fleet")
    assert tab.errors == []


@in_module_loop
async def test_page_works_through_the_proxy_and_shows_no_client(program: Program) -> None:
    pull(program.client("proxy"), image(program, "proxied"))
    async with running_browser(program.proxy) as browser:
        tab = await browser.tab()
        await tab.open("http://hub.cache/")
        await tab.wait_for("document.querySelector('#pulls').innerText.includes('proxied:1')")
        assert "127.0.0.1" not in await tab.text("#pulls")
        assert "not shown here" in await tab.text("#about")
        first = await tab.evaluate("report.now")
        await tab.wait_for(f"report.now > {first}")
        assert {url.removeprefix("http://hub.cache") for url in tab.requests} == {"/", "/events"}
        assert tab.errors == []


def test_page_has_a_policy_that_permits_only_its_own_script(program: Program) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{program.status}/") as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    through_proxy = request(program.proxy, "GET", "http://hub.cache/", {"Host": "hub.cache"})
    assert through_proxy.headers["content-security-policy"] == policy


@pytest.mark.parametrize("path", ["/", "/status", "/status.json", "/events"])
def test_other_host_names_get_no_status(program: Program, path: str) -> None:
    """A web page can make its own host name resolve to this address (DNS rebinding)."""
    asked = urllib.request.Request(f"http://127.0.0.1:{program.status}{path}", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(asked)


@in_module_loop
async def test_page_and_history_survive_a_restart(browser: Browser, program: Program) -> None:
    """The stop does not wait for the page, which listens to events, and the page says that there is no answer."""
    pull(program.client("mirror"), image(program, "kept"))
    tab = await open_page(browser, program)
    await tab.wait_for("report.ratio.week.requests >= 3")
    before = await tab.evaluate("report.ratio.week.requests")
    program.stop()
    await tab.wait_for(
        "(receivedAt -= LOST_MS, watch(), find('state').innerText === '⚠ No answer'"
        " && find('lost').innerText.includes('There was no answer since'))"
    )
    program.start()
    await tab.wait_for("document.querySelector('#lost').hidden")
    assert await tab.text("#state") == "✓ No problems"
    await tab.wait_for(f"report.ratio.week.requests >= {before}")
