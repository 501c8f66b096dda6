"""The version comes from pyproject.toml."""

import re
from pathlib import Path

import pytest
from hubcache.operate import version
from hubcache.serve.messages import Listener
from support.engine import running
from support.paths import REPOSITORY
from support.standin import Hub


def test_version_is_that_of_the_project_file() -> None:
    (line,) = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version.version() == line


def test_version_without_a_project_file_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "PROJECT_FILE", tmp_path / "pyproject.toml")
    assert version.version.__wrapped__() == version.UNKNOWN


async def test_registry_receives_the_version_as_user_agent(hub: Hub, tmp_path: Path) -> None:
    hub.image("library/app", "1")
    async with running(hub, tmp_path / "store") as cache:
        await cache.get(Listener.MIRROR, "/v2/library/app/manifests/1")
    assert {record.header("User-Agent") for record in hub.log} == {f"hubcache/{version.version()}"}
