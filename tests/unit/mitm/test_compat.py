"""The tested versions of mitmproxy and pyOpenSSL, and that missing internals are found at start."""

import re
import tomllib

import OpenSSL
import pytest
from hubcache.mitm import compat
from hubcache.mitm.compat import MITMPROXY, NAMES, PYOPENSSL, VersionRange, missing_names, parse_version
from mitmproxy import version
from support.paths import ADDON

RANGE = VersionRange("library", (12, 2, 3), (13,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12.3.1", (12, 3, 1)),
        ("13", (13,)),
        ("13.0.0.dev", (13, 0, 0)),
        ("13.0.dev (+5, commit abc)", (13, 0)),
        ("27.0.0rc1", (27, 0, 0)),
        ("unknown", ()),
    ],
)
def test_version_is_its_leading_numbers(text: str, expected: tuple[int, ...]) -> None:
    assert parse_version(text) == expected


@pytest.mark.parametrize("installed", ["12.2.3", "12.2.10", "12.3", "12.99.99"])
def test_version_in_the_range_is_tested(installed: str) -> None:
    assert RANGE.problem(installed) is None


@pytest.mark.parametrize("installed", ["12.2.2", "11.9", "13", "13.0.0", "13.0.0.dev", "unknown"])
def test_version_outside_of_the_range_is_reported(installed: str) -> None:
    assert RANGE.problem(installed) == f"library {installed} is not tested with this version"


def test_installed_versions_are_tested() -> None:
    assert compat.find_problem() is None


def test_untested_version_of_either_library_is_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenSSL, "__version__", "27.0.0")
    assert compat.find_problem() == "pyOpenSSL 27.0.0 is not tested with this version"
    monkeypatch.setattr(version, "VERSION", "13.0.0")
    assert compat.find_problem() == "mitmproxy 13.0.0 is not tested with this version"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mitmproxy.proxy.server", "ConnectionHandler.transport"),
        ("mitmproxy.proxy.server", "Handler"),
        ("mitmproxy.proxy.layers.http._http3_server", "Http3Server"),
        ("OpenSSL._util", "lib.SSL_write_early"),
        ("OpenSSL.SSL", "Connection._out_of_ssl"),
    ],
)
def test_missing_name_is_found(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    assert list(missing_names([(module, (name,))])) == [(module, name)]
    monkeypatch.setitem(NAMES, module, (name,))
    assert compat.find_problem() == f"{module} has no {name} in this version"


def test_dependencies_have_the_tested_ranges() -> None:
    project = tomllib.loads((ADDON.parent / "pyproject.toml").read_text())
    ranges = dict(re.findall(r"^([a-z]+)(\S+)$", "\n".join(project["project"]["dependencies"]), re.MULTILINE))
    for tested in (MITMPROXY, PYOPENSSL):
        first, end = (".".join(map(str, each)) for each in (tested.first, tested.end))
        assert ranges[tested.library.lower()] == f">={first},<{end}"
