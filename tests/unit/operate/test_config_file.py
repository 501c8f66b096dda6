"""The config file: names, types, precedence, and what a new text changes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.errors import ConfigError
from hubcache.operate.config_file import ConfigFile, parse
from hubcache.operate.options import OPTIONS


class Options(SimpleNamespace):
    """Values of options as mitmproxy has them."""

    def __contains__(self, name: object) -> bool:
        return name in vars(self)


def options(**values: Any) -> Options:
    return Options(**{each.name: each.default for each in OPTIONS} | {"confdir": "/nowhere", "listen_port": 0} | values)


def in_force(text: str, known: Options, fixed: frozenset[str] = frozenset()) -> ConfigFile:
    """Return a file whose values were set at start."""
    file = ConfigFile.find(known, fixed)
    vars(known).update(file.load(known, text))
    return file


def test_prefix_may_be_missing_and_numbers_become_text() -> None:
    text = "size: 1G\nhubcache_tag_ttl: 600\nadmit_after: 3\noffline: true\npins: [debian]\n"
    assert parse(text) == {
        "hubcache_size": "1G",
        "hubcache_tag_ttl": "600",
        "hubcache_admit_after": 3,
        "hubcache_offline": True,
        "hubcache_pins": ["debian"],
    }


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_empty_file_sets_nothing(text: str) -> None:
    assert parse(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise: 1G", "sise is not an option; did you mean size?"),
        (
            "hubcache_tag-ttl: 1\nx: 2",
            "hubcache_tag-ttl is not an option; did you mean tag_ttl?, and x is not an option",
        ),
        ("listen_port: 1", "listen_port is an option of mitmproxy, which reads it from config.yaml"),
        ("config: a.yaml", "config is not an option"),
        ("size: 1G\nhubcache_size: 2G", "hubcache_size is set twice, with and without its prefix"),
        ("pins: debian", "hubcache_pins: 'debian' is not of type sequence of str"),
        ("offline:", "hubcache_offline: None is not of type bool"),
        ("- size", "expected lines such as 'size: 50G'"),
        ("size", "Config error - no keys found."),
        ("a: b: c", "Config error at line 1: mapping values are not allowed here"),
        ("size: 1G\nsize: 2G", "Config error at line 2: found duplicate key"),
        ("size: \0", "Could not parse options."),
    ],
)
def test_error_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, options())
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_value_of_the_command_line_wins() -> None:
    assert in_force("size: 1G\npins: [a]", options(), frozenset({"hubcache_size"})).values == {"hubcache_pins": ["a"]}


def test_new_text_changes_values_at_once_or_at_the_next_start() -> None:
    known = options()
    file = in_force("size: 1G\nworkers: 2\noffline: true", known)
    change = file.change_to(known, "size: 2G\nworkers: 3\ntag_ttl: 5m")
    assert change.now == {"hubcache_size": "2G", "hubcache_offline": False, "hubcache_tag_ttl": "5m"}
    assert change.later == ("hubcache_workers",)
    assert str(change) == (
        "changed: hubcache_size=2G, hubcache_offline=False, hubcache_tag_ttl=5m; "
        "takes effect at the next start: hubcache_workers"
    )


def test_same_text_changes_nothing() -> None:
    known = options()
    change = in_force("size: 1G", known).change_to(known, "size: 1G")
    assert (str(change), change.now) == ("nothing changed", {})


@pytest.mark.parametrize("text", ["workers: many", "size: much", "sise: 1G"])
def test_invalid_new_text_is_an_error(text: str) -> None:
    known = options()
    with pytest.raises(ConfigError):
        in_force("size: 1G", known).change_to(known, text)


def test_default_file_is_beside_the_config_yaml_of_mitmproxy(tmp_path: Path) -> None:
    file = ConfigFile.find(options(confdir=str(tmp_path)), frozenset())
    assert (file.path, file.read()) == (tmp_path / "hubcache.yaml", "")
    file.path.write_text("size: 1G")
    assert file.read() == "size: 1G"


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    file = ConfigFile.find(options(hubcache_config=str(tmp_path / "own.yaml")), frozenset())
    with pytest.raises(ConfigError, match=r"hubcache_config: .*/own.yaml does not exist"):
        file.read()
    file.path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        file.read()
    file.path.write_bytes(b"#" * ((64 << 10) + 1))
    with pytest.raises(ConfigError, match="is too large; expected 65536 bytes at most"):
        file.read()
    file.path.unlink()
    file.path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        file.read()
