"""mitmproxy's commands: results, errors as one sentence, and what continues in the background."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from mitmproxy.exceptions import CommandError
from support.addon import REPO, AddonHarness, harness_fixture, loaded_addon
from support.standin import Hub
from support.users import until

harness = harness_fixture()


def run(harness: AddonHarness, name: str, *arguments: str) -> Any:
    return harness.context.master.commands.call_strings(name, list(arguments))


async def logged(harness: AddonHarness, caplog: pytest.LogCaptureFixture, name: str, *arguments: str) -> str:
    """Run a command, and return its result, also if it is logged later."""
    with caplog.at_level(logging.INFO, "hubcache"):
        found = str(run(harness, name, *arguments))
        if not found.endswith("the event log shows the result"):
            return found
        begin = f"hubcache: {name}: "
        results: list[str] = []

        def is_logged() -> bool:
            results[:] = [message for message in caplog.messages if message.startswith(begin)]
            return bool(results)

        await until(is_logged)
        caplog.clear()
        return results[-1].removeprefix(begin)


async def test_status_shows_the_store(harness: AddonHarness) -> None:
    lines: Sequence[str] = run(harness, "hubcache.status")
    assert lines[0].startswith("hubcache ")
    assert str(harness.engine.store.directory) in lines[1]


async def test_image_is_warmed_listed_pinned_and_unpinned(
    harness: AddonHarness, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.image(REPO, "1", [b"x" * 1500])
    name = f"{REPO}:1"
    warmed = await logged(harness, caplog, "hubcache.warm", name)
    assert warmed.startswith(f"{name} is stored, ")
    assert "upstream requests" in warmed
    listed = await logged(harness, caplog, "hubcache.images")
    assert listed.startswith("1 images\n")
    assert name.removeprefix("library/") in listed
    assert (await logged(harness, caplog, "hubcache.verify")).endswith(": 3 good")
    assert "is pinned" in await logged(harness, caplog, "hubcache.pin", name)
    assert "pinned" in (await logged(harness, caplog, "hubcache.images")).splitlines()[1]
    assert "no longer pinned" in await logged(harness, caplog, "hubcache.unpin", name)
    assert "3 manifests and blobs were removed" in await logged(harness, caplog, "hubcache.purge", name)
    assert await logged(harness, caplog, "hubcache.images") == "0 images"


async def test_damaged_content_is_logged_and_counted(
    harness: AddonHarness, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    digest = hub.image(REPO, "1", [b"x" * 1500]).layers[0]
    await logged(harness, caplog, "hubcache.warm", f"{REPO}:1")
    path = harness.engine.store.blob_path(digest)
    path.chmod(0o600)
    path.write_bytes(b"y" * 1500)
    with caplog.at_level(logging.INFO, "hubcache"):
        run(harness, "hubcache.verify", "true")
        await until(lambda: any("repaired" in message for message in caplog.messages))
    assert any(message.startswith(f"hubcache: hubcache.verify: {digest}: ") for message in caplog.messages)
    caplog.clear()
    assert (await logged(harness, caplog, "hubcache.verify")).endswith(": 3 good")


async def test_image_that_does_not_exist_is_not_stored(
    harness: AddonHarness, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    assert "is not stored: " in await logged(harness, caplog, "hubcache.warm", f"{REPO}:none")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hubcache.pin", ["UPPER CASE"]),
        ("hubcache.pin", ["registry.example.com/a:1"]),
        ("hubcache.warm", ["a:b:c"]),
        ("hubcache.warm", ["debian", "no platform"]),
    ],
)
async def test_wrong_argument_is_refused_with_one_sentence(
    harness: AddonHarness, name: str, arguments: list[str]
) -> None:
    with pytest.raises(CommandError) as refused:
        run(harness, name, *arguments)
    assert "\n" not in str(refused.value)


async def test_error_of_work_in_the_background_is_logged(
    harness: AddonHarness, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        message = await logged(harness, caplog, "hubcache.unpin", "debian:1")
    except CommandError as error:
        message = str(error)
    assert message == "debian:1 is not pinned"


@pytest.mark.parametrize("what", ["debian:1", f"sha256:{'0' * 64}"])
async def test_purge_of_what_is_not_stored_is_refused(harness: AddonHarness, what: str) -> None:
    with pytest.raises(CommandError, match=f"{what} is not stored"):
        run(harness, "hubcache.purge", what)


async def test_commands_are_refused_while_the_cache_does_not_serve(hub: Hub, tmp_path: Any) -> None:
    with loaded_addon(hub, tmp_path) as loaded, pytest.raises(CommandError, match="does not serve"):
        run(loaded, "hubcache.status")


async def test_running_command_is_cancelled_at_the_end(hub: Hub, tmp_path: Any) -> None:
    with loaded_addon(hub, tmp_path) as loaded:
        await loaded.addon.running()
        run(loaded, "hubcache.warm", f"{REPO}:1")
        await loaded.addon.done()
        await until(lambda: not loaded.addon._commands._running)
        with pytest.raises(CommandError, match="does not serve"):
            run(loaded, "hubcache.images")
