"""Files are found in a checkout and in an installed package."""

from pathlib import Path

import platformdirs
import pytest
from hubcache.operate import installation, version
from support.paths import REPOSITORY


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts of an installed package, which has no repository around it."""
    scripts = tmp_path / "site-packages/hubcache/scripts"
    scripts.mkdir(parents=True)
    monkeypatch.setattr(installation, "PACKAGE", scripts.parent)
    monkeypatch.setattr(installation, "INSTALLED_SCRIPTS", scripts)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    return scripts


@pytest.mark.parametrize("name", ["cache.py", "worker.py"])
def test_scripts_of_a_checkout_are_beside_the_package(name: str) -> None:
    assert installation.script(name) == REPOSITORY / "addon" / name
    assert installation.script(name).is_file()


def test_scripts_of_an_installed_package_are_in_it(installed: Path) -> None:
    assert installation.script("worker.py") == installed / "worker.py"


def test_ca_of_a_checkout_is_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/hubcache")
    assert installation.ca_directory() == REPOSITORY / "certs"


@pytest.mark.parametrize("value", ["/var/lib/hubcache", "/var/lib/hubcache:/var/lib/other"])
def test_ca_of_an_installed_service_is_in_its_state_directory(
    installed: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", value)
    assert installation.ca_directory() == Path("/var/lib/hubcache/ca")


def test_ca_of_an_installed_package_is_with_the_data_of_the_user(installed: Path) -> None:
    assert installation.ca_directory() == platformdirs.user_data_path("hubcache") / "ca"


def test_version_of_an_installed_package_is_that_of_its_metadata(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version.metadata, "version", {"hubcache": "9.8.7"}.__getitem__)
    assert version.version.__wrapped__() == "9.8.7"
