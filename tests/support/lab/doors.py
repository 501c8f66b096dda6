"""The two ways into the cache, as the settings each client needs for them."""

from dataclasses import dataclass
from pathlib import Path

from .product import Cache

DEAD_PROXY = "http://127.0.0.1:9"
"""Set as proxy of clients that use the mirror, so that going round the mirror fails at once."""


@dataclass(frozen=True)
class Door:
    """*name* is ``proxy`` (HTTPS_PROXY) or ``mirror`` (registry mirror); files go below *room*."""

    name: str
    cache: Cache
    room: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of dockerd, skopeo, podman and ctr."""
        if self.name == "mirror":
            return {"HTTPS_PROXY": DEAD_PROXY}
        return {
            "HTTPS_PROXY": f"http://127.0.0.1:{self.cache.proxy}",
            "SSL_CERT_DIR": str(self.cache.ca_directory),
        }

    @property
    def mirror_url(self) -> str:
        return f"http://127.0.0.1:{self.cache.mirror}"

    @property
    def dockerd_arguments(self) -> list[str]:
        return ["--registry-mirror", self.mirror_url] if self.name == "mirror" else []

    @property
    def ctr_arguments(self) -> list[str]:
        """Arguments of ``ctr images pull``."""
        if self.name == "proxy":
            return []
        directory = self.room / "hosts.d/docker.io"
        directory.mkdir(parents=True, exist_ok=True)
        hosts = f'server = "https://registry-1.docker.io"\n[host."{self.mirror_url}"]\n'
        (directory / "hosts.toml").write_text(hosts + '  capabilities = ["pull", "resolve"]\n')
        return ["--hosts-dir", str(directory.parent)]

    def registries_conf(self) -> Path:
        """registries.conf of skopeo (an option) and podman (an environment variable)."""
        lines = ['unqualified-search-registries = ["docker.io"]', "[[registry]]", 'location = "docker.io"']
        if self.name == "mirror":
            lines += ["[[registry.mirror]]", f'location = "127.0.0.1:{self.cache.mirror}"', "insecure = true"]
        path = self.room / f"registries-{self.name}.conf"
        path.write_text("\n".join(lines) + "\n")
        return path
