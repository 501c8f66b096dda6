"""Where the command line finds the store: in the order of the cache itself."""

import os
from pathlib import Path

import pytest
from hubcache.cli.configuration import configured, find_store
from hubcache.cli.errors import UsageError


@pytest.fixture
def mitmproxy_directory() -> Path:
    directory = Path(os.environ["HOME"]) / ".mitmproxy"
    directory.mkdir()
    return directory


def test_default_is_the_cache_directory_of_the_platform() -> None:
    assert find_store(None) == Path(os.environ["HOME"]) / ".cache/hubcache"


def test_named_directory_is_made_absolute() -> None:
    assert find_store(Path("here")) == Path.cwd() / "here"
    assert find_store(Path("~/store")) == Path(os.environ["HOME"]) / "store"


def test_each_source_wins_over_the_next(mitmproxy_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mitmproxy_directory / "config.yaml").write_text("hubcache_dir: /of-mitmproxy\n")
    assert find_store(None) == Path("/of-mitmproxy")
    (mitmproxy_directory / "hubcache.yaml").write_text("dir: /of-file\n")
    assert find_store(None) == Path("/of-file")
    monkeypatch.setenv("HUBCACHE_DIR", "/of-environment")
    assert find_store(None) == Path("/of-environment")
    assert find_store(Path("/named")) == Path("/named")


def test_name_in_the_file_may_have_the_prefix(mitmproxy_directory: Path) -> None:
    (mitmproxy_directory / "hubcache.yaml").write_text("hubcache_dir: /store\n")
    assert find_store(None) == Path("/store")


@pytest.mark.parametrize("by_environment", [True, False])
def test_another_config_file_is_read(
    mitmproxy_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    (mitmproxy_directory / "hubcache.yaml").write_text("dir: /not-this\n")
    other = tmp_path / "other.yaml"
    other.write_text("dir: /this\nregistries: [ghcr.io]\n")
    if by_environment:
        monkeypatch.setenv("HUBCACHE_CONFIG", str(other))
    else:
        (mitmproxy_directory / "config.yaml").write_text(f"hubcache_config: {other}\n")
    assert find_store(None) == Path("/this")
    assert configured("registries") == ["ghcr.io"]
    other.unlink()
    with pytest.raises(UsageError, match=f"{other} does not exist"):
        find_store(None)


@pytest.mark.parametrize("text", ["dir: [unclosed", "\x00"])
def test_malformed_file_is_an_error(mitmproxy_directory: Path, text: str) -> None:
    (mitmproxy_directory / "hubcache.yaml").write_text(text)
    with pytest.raises(UsageError, match="is not valid YAML; name the store with --dir"):
        find_store(None)


@pytest.mark.parametrize("text", ["", "dir:", "- a", "dir: 5"])
def test_file_without_a_directory_is_no_error(mitmproxy_directory: Path, text: str) -> None:
    (mitmproxy_directory / "hubcache.yaml").write_text(text)
    assert find_store(None) == Path(os.environ["HOME"]) / ".cache/hubcache"


def test_unreadable_file_is_an_error(mitmproxy_directory: Path) -> None:
    (mitmproxy_directory / "hubcache.yaml").mkdir()
    with pytest.raises(UsageError, match=r"cannot be read: .*; name the store with --dir"):
        find_store(None)
