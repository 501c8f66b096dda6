"""Option values are checked as a whole at start; each error names its option."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.errors import ConfigError
from hubcache.oci.image_name import ImageName
from hubcache.oci.registry import Registry
from hubcache.operate import options
from hubcache.operate.option_table import OPTIONS
from hubcache.operate.options import Scrub, Settings
from mitmproxy.addonmanager import Loader
from support.mitm import taddons


@pytest.fixture
def context() -> Iterator[taddons.context]:
    """mitmproxy's options with ours among them."""
    with taddons.context() as made:
        options.declare(Loader(made.master))
        yield made


def parse(context: taddons.context, **values: Any) -> Settings:
    context.options.update(**values)
    return Settings.parse(context.options)


def test_defaults_are_those_of_the_readme(context: taddons.context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    settings = parse(context)
    assert settings.directory == Path("/var/cache/someone/hubcache")
    assert settings.size == 50 << 30
    assert settings.registries == (Registry("registry-1.docker.io", "https://registry-1.docker.io"),)
    assert settings.tag_ttl == 60
    assert settings.max_stale == 30 * 86400
    assert settings.negative_ttl == 30
    assert settings.status == ("127.0.0.1", 9180)
    assert settings.account is None
    assert settings.sync
    assert not settings.offline
    assert not settings.authorize


def test_every_option_has_help_that_is_a_sentence() -> None:
    for option in OPTIONS:
        assert option.name.startswith("hubcache_")
        assert option.help[0].isupper()
        assert option.help.endswith(".")


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("1k", 1024), ("500M", 500 << 20), (" 2g ", 2 << 30), ("1T", 1 << 40)]
)
def test_sizes_are_powers_of_1024(context: taddons.context, text: str, size: int) -> None:
    assert parse(context, hubcache_size=text).size == size


def test_directory_is_absolute_and_knows_the_home_directory(
    context: taddons.context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert parse(context, hubcache_dir="~/store").directory == tmp_path / "store"
    assert parse(context, hubcache_dir="store").directory == tmp_path / "store"


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:9180", ("::1", 9180)), (" localhost:1 ", ("localhost", 1)), ("", None)],
)
def test_status_address_is_host_and_port_or_none(
    context: taddons.context, text: str, address: tuple[str, int] | None
) -> None:
    assert parse(context, hubcache_status=text).status == address


def test_registries_are_several_with_or_without_an_upstream(context: taddons.context) -> None:
    texts = ["registry-1.docker.io=http://localhost:5001", "ghcr.io"]
    hosts = [registry.host for registry in parse(context, hubcache_registries=texts).registries]
    assert hosts == ["registry-1.docker.io", "ghcr.io"]


def test_pins_are_images_of_configured_registries(context: taddons.context) -> None:
    texts = ["debian:12", "ghcr.io/owner/name"]
    settings = parse(context, hubcache_registries=["registry-1.docker.io", "ghcr.io"], hubcache_pins=texts)
    assert settings.pins == tuple(map(ImageName.parse, texts))


def test_offline_serves_tags_however_old(context: taddons.context) -> None:
    assert parse(context, hubcache_offline=True, hubcache_max_stale=0).max_stale == math.inf


def test_password_is_read_from_its_file_and_not_shown(context: taddons.context, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret word\n")
    settings = parse(context, hubcache_username="alice", hubcache_password_file=str(file))
    assert settings.account is not None
    assert (settings.account.username, settings.account.password) == ("alice", "secret word")
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hubcache_size", ""),
        ("hubcache_size", "0"),
        ("hubcache_size", "-5g"),
        ("hubcache_size", "lots"),
        ("hubcache_size", "1.5g"),
        ("hubcache_tag_ttl", -1),
        ("hubcache_max_stale", -1),
        ("hubcache_negative_ttl", -1),
        ("hubcache_ratelimit_reserve", -1),
        ("hubcache_status", "9180"),
        ("hubcache_status", "host:"),
        ("hubcache_status", ":80"),
        ("hubcache_status", "host:0"),
        ("hubcache_status", "host:65536"),
        ("hubcache_status", "host:http"),
        ("hubcache_registries", []),
        ("hubcache_registries", [""]),
        ("hubcache_registries", ["ghcr.io", "GHCR.io:443"]),
        ("hubcache_registries", ["ghcr.io=ftp://x"]),
        ("hubcache_registries", ["ghcr.io="]),
        ("hubcache_private", "maybe"),
        ("hubcache_mirror_miss", "maybe"),
        ("hubcache_admit_after", -1),
        ("hubcache_half_life", 0),
        ("hubcache_expire_after", 0),
        ("hubcache_max_blob", "big"),
        ("hubcache_min_free", "-1"),
        ("hubcache_pins", ["Debian"]),
        ("hubcache_pins", ["debian:12", "ghcr.io/owner/name"]),
        ("hubcache_workers", "0"),
        ("hubcache_workers", "many"),
        ("hubcache_username", "alice"),
        ("hubcache_password_file", "/does/not/exist"),
        ("hubcache_dir", "~nobody-of-this-name/store"),
    ],
)
def test_bad_value_is_refused_with_one_line_that_names_the_option(
    context: taddons.context, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(context, **{name: value})
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_password_file_without_a_password_is_refused(
    context: taddons.context, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="hubcache_password_file"):
        parse(context, hubcache_username="alice", hubcache_password_file=str(file))


@pytest.mark.parametrize(
    ("text", "scrub"),
    [
        ("0", None),
        ("", None),
        ("30d", Scrub(period=30 * 86400.0)),
        ("12h", Scrub(period=43200.0)),
        ("10M", Scrub(rate=10 << 20)),
    ],
)
def test_a_scrub_is_a_time_or_a_speed(context: taddons.context, text: str, scrub: Scrub | None) -> None:
    assert parse(context, hubcache_scrub=text).scrub == scrub


@pytest.mark.parametrize("text", ["d", "-3d", "often", "0d"])
def test_a_scrub_that_is_neither_is_refused(context: taddons.context, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^hubcache_scrub: .* is neither a time such as 30d"):
        parse(context, hubcache_scrub=text)


def test_tunnels_are_patterns_of_hosts_and_ports(context: taddons.context) -> None:
    assert parse(context, hubcache_tunnel=["*.Example.com:443", "[::1]", "10.*"]).tunnel == (
        "*.example.com:443",
        "[::1]",
        "10.*",
    )
    with pytest.raises(ConfigError, match=r"^hubcache_tunnel: 'http://x' is not HOST or HOST:PORT"):
        parse(context, hubcache_tunnel=["http://x"])


def test_clients_are_networks(context: taddons.context) -> None:
    assert [str(each) for each in parse(context, hubcache_clients=["10.0.0.0/8", "::1"]).clients] == [
        "10.0.0.0/8",
        "::1/128",
    ]
    with pytest.raises(ConfigError, match=r"^hubcache_clients: .*expected networks such as 10\.0\.0\.0/8"):
        parse(context, hubcache_clients=["10.0.0.1/8"])
