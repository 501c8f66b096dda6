"""Fixtures of the tests of the command line."""

from collections.abc import Iterator

import pytest
from support.cli import ControlStandIn, control_stand_in


@pytest.fixture
def control() -> Iterator[ControlStandIn]:
    """A stand-in of a running cache's control socket."""
    with control_stand_in() as running:
        yield running


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands read no configuration of the user that runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("DIR", "CONFIG", "REGISTRIES", "STATUS"):
        monkeypatch.delenv(f"HUBCACHE_{name}", raising=False)
    for name in ("XDG_CACHE_HOME", "NO_COLOR", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
