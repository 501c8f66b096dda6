"""The platform of a client, from its `User-Agent`."""

import platform
import re

_PLATFORM = re.compile(r"os/(\w{1,20}) arch/(\w{1,20})")
_SYSTEMS = {"linux", "windows", "darwin", "freebsd"}
_KNOWN_ARCHITECTURES = {
    *("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64"),
    *("s390x", "wasm"),
}
"""Names in Go (OCI image index, "platform") of architectures for which there are images."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def platform_of(user_agent: str) -> str:
    """Return the platform that a `User-Agent` names (dockerd: `… os/linux arch/arm64 …`), else this machine's.

    Names of no known platform are ignored: images are fetched and counted for each platform.
    """
    found = _PLATFORM.search(user_agent)
    if found is not None and found[1] in _SYSTEMS and found[2] in _KNOWN_ARCHITECTURES:
        return f"{found[1]}/{found[2]}/"
    return f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}/"
