"""The root file system that real images are built on: the machine's own distribution, made by debootstrap once."""

import os
import platform
import re
import shlex
import tarfile
import tempfile
from pathlib import Path

import platformdirs
import pytest

from support.processes import require, require_root, run

VERSION = 1
"""Part of the cached file's name; raise it when what goes into the file changes."""
LEFT_OUT = re.compile(
    r"\./(dev/.+|proc/.+|sys/.+|usr/share/(doc|locale|man|i18n|info)/.+|var/cache/apt/.+|var/lib/apt/lists/.+|var/log/.+)"
)


def cache_directory() -> Path:
    """Where files are kept between runs: $HUBCACHE_TEST_CACHE, or a place below the user's cache directory."""
    chosen = os.environ.get("HUBCACHE_TEST_CACHE")
    directory = Path(chosen) if chosen else platformdirs.user_cache_path("hubcache-tests")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _apt_proxy() -> dict[str, str]:
    found = re.search(r"='(.*)'", run("apt-config", "shell", "PROXY", "Acquire::http::Proxy"))
    return {"http_proxy": found[1]} if found and found[1] else {}


def _sources() -> tuple[str, str]:
    """Suite and mirror that apt is configured with for the running release."""
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\S+)", release, re.MULTILINE)
    suite = shlex.split(found[1])[0] if found else ""
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)").splitlines():
        address, _, rest = line.partition(" ")
        if rest == f"{suite} main":
            return suite, address
    pytest.fail(f"apt has no source for {suite!r} main")


def base_layer() -> bytes:
    """A gzip-compressed layer: a minimal Debian (or Ubuntu) for this machine. Takes about a minute when not cached."""
    suite, mirror = _sources()
    cached = cache_directory() / f"base-{suite}-{platform.machine()}-v{VERSION}.tar.gz"
    if cached.exists():
        return cached.read_bytes()
    require_root()
    require("debootstrap")
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix="making-") as making:
        root, made = Path(making, "root"), Path(making, "base.tar.gz")
        environment = _apt_proxy() | ({"http_proxy": os.environ["http_proxy"]} if "http_proxy" in os.environ else {})
        run("debootstrap", "--variant=minbase", suite, root, mirror, env=environment, timeout=900)
        with tarfile.open(made, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=6) as archive:
            archive.add(root, ".", filter=lambda member: None if LEFT_OUT.fullmatch(member.name) else member)
        made.rename(cached)
    return cached.read_bytes()
