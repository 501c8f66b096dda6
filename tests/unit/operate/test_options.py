"""Options are checked together at start; each error names its option."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.decide.retention import Retention
from hubcache.oci.errors import ConfigError
from hubcache.oci.image_name import ImageName
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate import options
from hubcache.operate.options import OPTIONS, Settings
from mitmproxy import exceptions
from mitmproxy.addonmanager import Loader
from simlib.candidates import Settings as SimulationSettings
from support.mitm import taddons


@pytest.fixture
def context() -> Iterator[taddons.context]:
    """mitmproxy's options, with those of this program among them."""
    with taddons.context() as made:
        options.declare(Loader(made.master))
        yield made


def parse(context: taddons.context, **values: Any) -> Settings:
    context.options.update(**values)
    return Settings.parse(context.options)


def test_defaults_are_documented_values(context: taddons.context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    settings = parse(context)
    assert settings.directory == Path("/var/cache/someone/hubcache")
    assert settings.size == 50 << 30
    assert settings.admit_after == 2
    assert settings.half_life == 7 * 86400
    assert settings.expire_after == 30 * 86400
    assert settings.registries == (Registry("registry-1.docker.io", "https://registry-1.docker.io"),)
    assert settings.tag_ttl == 60
    assert settings.max_stale == 30 * 86400
    assert settings.negative_ttl == 30
    assert settings.while_revalidate == 0
    assert settings.sync_rate == 1
    assert settings.stop_within == 30
    assert settings.status == ("127.0.0.1", 9180)
    assert settings.account is None
    assert settings.bucket is None
    assert settings.bucket_size == 100 << 30
    assert not settings.bucket_private
    assert settings.peer_listen == ("", 5002)
    assert settings.peer_address is None
    assert settings.sync
    assert not settings.offline
    assert not settings.authorize
    assert not settings.offer_only


def test_settings_without_arguments_are_defaults(context: taddons.context) -> None:
    assert Settings() == parse(context)


def test_every_option_has_help_of_one_sentence() -> None:
    assert OPTIONS
    for each in OPTIONS:
        assert each.name.startswith("hubcache_")
        assert each.help[0].isupper()
        assert each.help.endswith(".")
        assert re.search(r"[.!?] [A-Z]", each.help) is None, each.name
        assert ("next start" in each.help) == each.at_start, each.name


def test_directory_is_absolute_and_tilde_is_the_home_directory(
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


def test_registries_are_parsed_with_and_without_an_upstream(context: taddons.context) -> None:
    texts = ["registry-1.docker.io=http://localhost:5001", "ghcr.io"]
    hosts = [registry.host for registry in parse(context, hubcache_registries=texts).registries]
    assert hosts == ["registry-1.docker.io", "ghcr.io"]


@pytest.mark.parametrize(
    ("texts", "hosts"),
    [
        (["*"], [HUB_HOST]),
        (["*", "ghcr.io"], [HUB_HOST, "ghcr.io"]),
        (["*", "ghcr.io", f"{HUB_HOST}=http://localhost:5001"], [HUB_HOST, "ghcr.io"]),
        (["ghcr.io", "*"], ["ghcr.io"]),
        (["*.example.com", "ghcr.io"], ["ghcr.io"]),
    ],
)
def test_first_registry_is_the_default_and_any_means_docker_hub(
    context: taddons.context, texts: list[str], hosts: list[str]
) -> None:
    settings = parse(context, hubcache_registries=texts)
    assert [registry.host for registry in settings.registries] == hosts
    assert len(settings.registry_patterns) == 1
    assert settings.registries[0].upstream.startswith("http://localhost" if "=" in texts[-1] else "https://")


def test_pins_may_be_images_of_registries_that_a_pattern_permits(context: taddons.context) -> None:
    settings = parse(context, hubcache_registries=["ghcr.io", "*.example.com"], hubcache_pins=["r.example.com/a/b"])
    assert settings.pins == (ImageName.parse("r.example.com/a/b"),)
    with pytest.raises(ConfigError, match="is not in hubcache_registries"):
        parse(context, hubcache_registries=["ghcr.io", "*.example.com"], hubcache_pins=["r.example.org/a/b"])


def test_pins_are_images_of_configured_registries(context: taddons.context) -> None:
    texts = ["debian:12", "ghcr.io/owner/name"]
    settings = parse(context, hubcache_registries=["registry-1.docker.io", "ghcr.io"], hubcache_pins=texts)
    assert settings.pins == tuple(map(ImageName.parse, texts))


def test_offline_serves_stale_tags_without_limit(context: taddons.context) -> None:
    assert parse(context, hubcache_offline=True, hubcache_max_stale="0").max_stale == math.inf


def test_password_is_read_from_its_file_and_not_in_the_repr(context: taddons.context, tmp_path: Path) -> None:
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
        ("hubcache_tag_ttl", "-1"),
        ("hubcache_max_stale", "-1"),
        ("hubcache_negative_ttl", "-1"),
        ("hubcache_stale_while_revalidate", "-1"),
        ("hubcache_stop_within", "soon"),
        ("hubcache_ratelimit_reserve", -1),
        ("hubcache_sync_rate", -1),
        ("hubcache_status", "9180"),
        ("hubcache_status", "host:"),
        ("hubcache_status", ":80"),
        ("hubcache_status", "host:0"),
        ("hubcache_status", "host:65536"),
        ("hubcache_status", "host:http"),
        ("hubcache_registries", []),
        ("hubcache_registries", [""]),
        ("hubcache_registries", ["*.example.com"]),
        ("hubcache_registries", ["ghcr.io", "*.com"]),
        ("hubcache_registries", ["ghcr.io", "GHCR.io:443"]),
        ("hubcache_registries", ["ghcr.io=ftp://x"]),
        ("hubcache_registries", ["ghcr.io="]),
        ("hubcache_private", "maybe"),
        ("hubcache_mirror_miss", "maybe"),
        ("hubcache_admit_after", -1),
        ("hubcache_half_life", "0"),
        ("hubcache_expire_after", "0"),
        ("hubcache_max_blob", "big"),
        ("hubcache_min_free", "-1"),
        ("hubcache_scrub", "often"),
        ("hubcache_pins", ["Debian"]),
        ("hubcache_pins", ["debian:12", "ghcr.io/owner/name"]),
        ("hubcache_workers", "0"),
        ("hubcache_workers", "many"),
        ("hubcache_username", "alice"),
        ("hubcache_password_file", "/does/not/exist"),
        ("hubcache_dir", "~nobody-of-this-name/store"),
        ("hubcache_tunnel", ["http://x"]),
        ("hubcache_clients", ["10.0.0.1/8"]),
    ],
)
def test_bad_value_is_refused_with_one_line_that_names_the_option(
    context: taddons.context, name: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(context, **{name: value})
    assert str(refused.value).startswith("hubcache_")
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_password_file_without_a_password_is_refused(
    context: taddons.context, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^hubcache_password_file: "):
        parse(context, hubcache_username="alice", hubcache_password_file=str(file))


def test_tunnel_patterns_are_hosts_and_ports_in_lower_case(context: taddons.context) -> None:
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


@pytest.mark.parametrize(
    ("changed", "option"),
    [({"hubcache_dir": "/other"}, "hubcache_dir"), ({"hubcache_status": ""}, "hubcache_status"),
     ({"hubcache_workers": "2"}, "hubcache_workers")],
)  # fmt: skip
def test_change_of_an_option_that_takes_effect_at_start_is_refused(
    context: taddons.context, changed: dict[str, str], option: str
) -> None:
    before = parse(context)
    before.check_change_to(parse(context, hubcache_size="1G"))
    with pytest.raises(ConfigError, match=f"^{option} takes effect at start only$"):
        before.check_change_to(parse(context, **changed))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hubcache_sise"], "hubcache_sise is not an option; did you mean hubcache_size?"),
        (["hubcache_ttl"], "hubcache_ttl is not an option; did you mean hubcache_tag_ttl?"),
        (["HUBCACHE_SIZE"], "HUBCACHE_SIZE is not an option; did you mean hubcache_size?"),
        (["hubcache-size"], "hubcache-size is not an option; did you mean hubcache_size?"),
        (["hubcachesize"], "hubcachesize is not an option; did you mean hubcache_size?"),
        (["hubcache_xyzzyxyzzyxyzzyxyzzy"], "hubcache_xyzzyxyzzyxyzzyxyzzy is not an option"),
        (
            ["hubcache_sise", "other", "hubcache_dirs"],
            "hubcache_sise is not an option; did you mean hubcache_size?, "
            "and hubcache_dirs is not an option; did you mean hubcache_dir?",
        ),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_option(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        options.check_names(given)
    assert str(refused.value) == message


def test_options_of_this_program_and_of_other_addons_are_accepted() -> None:
    options.check_names(["hubcache_size", "hubcache_dir", "other_addon_size", "hub"])


def test_unknown_name_is_refused_while_the_program_runs(context: taddons.context) -> None:
    """mitmproxy itself refuses it: `set` in the console, `update` in mitmweb."""
    with pytest.raises(exceptions.OptionsError, match="hubcache_sise"):
        context.options.set("hubcache_sise=5G")
    with pytest.raises(KeyError, match="hubcache_sise"):
        context.options.update(hubcache_sise="5G")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hubcache_size", 1.5, "str"),
        ("hubcache_size", True, "str"),
        ("hubcache_size", None, "str"),
        ("hubcache_admit_after", "3", "int"),
        ("hubcache_offline", "yes", "bool"),
        ("hubcache_pins", "debian:12", "sequence of str"),
        ("hubcache_pins", [12], "sequence of str"),
    ],
)
def test_value_of_a_wrong_type_in_a_config_file_is_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        options.convert_config_file({name: value})
    assert str(refused.value) == f"{name}: {value!r} is not of type {expected}"


def test_policy_and_simulation_have_the_defaults_of_the_options() -> None:
    settings = Settings()
    for other in (Retention[str](), SimulationSettings()):
        assert (other.half_life, other.expire_after, other.admit_after) == (
            settings.half_life,
            settings.expire_after,
            settings.admit_after,
        )


def test_numbers_of_a_config_file_are_accepted_for_text_options() -> None:
    given = {"hubcache_tag_ttl": 600, "hubcache_admit_after": 3, "hubcache_sync": True, "other": 1}
    options.convert_config_file(given)
    assert given == {"hubcache_tag_ttl": "600", "hubcache_admit_after": 3, "hubcache_sync": True, "other": 1}
