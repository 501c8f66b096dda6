"""The base layer of real images: the root file system of this machine's distribution, made once by debootstrap.

As a program (`python -m support.e2e.base_layer`) it makes the layer, so that the tests find it.
"""

import contextlib
import fcntl
import os
import platform
import re
import shlex
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from support.processes import run
from support.required import require, require_root

VERSION = 1
"""Part of the cached file's name. Raise it when the content of the file changes."""
EXCLUDED = re.compile(
    r"\./(dev/.+|proc/.+|sys/.+|usr/share/(doc|locale|man|i18n|info)/.+|var/cache/apt/.+|var/lib/apt/lists/.+|var/log/.+)"
)


def cache_directory() -> Path:
    """Return the directory of files kept between runs: $HUBCACHE_TEST_CACHE, or one in the user's cache directory."""
    chosen = os.environ.get("HUBCACHE_TEST_CACHE")
    directory = Path(chosen) if chosen else platformdirs.user_cache_path("hubcache-tests")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def making(cached: Path) -> Iterator[bool]:
    """Yield whether the file is missing and must be made in this block; meanwhile other processes wait here."""
    with cached.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not cached.exists()


def _apt_proxy() -> dict[str, str]:
    """Return the environment variable for the proxy that apt is configured with, if any."""
    found = re.search(r"='(.*)'", run("apt-config", "shell", "PROXY", "Acquire::http::Proxy"))
    return {"http_proxy": found[1]} if found and found[1] else {}


def _sources() -> tuple[str, str]:
    """Return the suite and the mirror that apt is configured with for the running release."""
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\S+)", release, re.MULTILINE)
    suite = shlex.split(found[1])[0] if found else ""
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)").splitlines():
        address, _, rest = line.partition(" ")
        if rest == f"{suite} main":
            return suite, address
    pytest.fail(f"apt has no source for {suite!r} main")


def base_layer() -> bytes:
    """Return a minimal Debian (or Ubuntu) as a gzip-compressed layer. It takes about a minute unless it is cached."""
    suite, mirror = _sources()
    cached = cache_directory() / f"base-{suite}-{platform.machine()}-v{VERSION}.tar.gz"
    if not cached.exists():
        with making(cached) as is_missing:
            if is_missing:
                _make(cached, suite, mirror)
    return cached.read_bytes()


def _make(cached: Path, suite: str, mirror: str) -> None:
    require_root()
    require("debootstrap")
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix="making-") as directory:
        root, made = Path(directory, "root"), Path(directory, "base.tar.gz")
        environment = _apt_proxy() | ({"http_proxy": os.environ["http_proxy"]} if "http_proxy" in os.environ else {})
        run("debootstrap", "--variant=minbase", suite, root, mirror, env=environment, timeout=900)
        with tarfile.open(made, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=6) as archive:
            archive.add(root, ".", filter=lambda member: None if EXCLUDED.fullmatch(member.name) else member)
        made.rename(cached)


if __name__ == "__main__":
    base_layer()
