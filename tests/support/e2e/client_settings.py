"""Settings with which real clients reach the program's listeners."""

from dataclasses import dataclass
from pathlib import Path

from support.program import HUB_HOST, Program

DEAD_PROXY = "http://127.0.0.1:9"
"""The proxy of clients that use the mirror, so that requests to Docker Hub itself fail at once."""


@dataclass(frozen=True)
class ClientSettings:
    """Settings for one listener, "proxy" (HTTPS_PROXY) or "mirror" (registry mirror); files are below `workspace`."""

    listener: str
    program: Program
    workspace: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment of dockerd, skopeo, podman and ctr."""
        if self.listener == "mirror":
            return {"HTTPS_PROXY": DEAD_PROXY}
        return {"HTTPS_PROXY": f"http://127.0.0.1:{self.program.proxy}", "SSL_CERT_DIR": str(self._ca_directory())}

    def _ca_directory(self) -> Path:
        """Return a directory that holds the CA's certificate and nothing else."""
        directory = self.program.directory / "trusted"
        directory.mkdir(exist_ok=True)
        (directory / "hubcache.pem").write_bytes((self.program.confdir / "mitmproxy-ca-cert.pem").read_bytes())
        return directory

    @property
    def mirror_url(self) -> str:
        return f"http://127.0.0.1:{self.program.mirror}"

    @property
    def dockerd_arguments(self) -> list[str]:
        return ["--registry-mirror", self.mirror_url] if self.listener == "mirror" else []

    @property
    def ctr_arguments(self) -> list[str]:
        """Arguments of `ctr images pull`."""
        if self.listener == "proxy":
            return []
        directory = self.workspace / "hosts.d/docker.io"
        directory.mkdir(parents=True, exist_ok=True)
        hosts = f'server = "https://{HUB_HOST}"\n[host."{self.mirror_url}"]\n'
        (directory / "hosts.toml").write_text(hosts + '  capabilities = ["pull", "resolve"]\n')
        return ["--hosts-dir", str(directory.parent)]

    def registries_conf(self) -> Path:
        """Return a registries.conf, which skopeo takes as an option and podman from an environment variable."""
        lines = ['unqualified-search-registries = ["docker.io"]', "[[registry]]", 'location = "docker.io"']
        if self.listener == "mirror":
            lines += ["[[registry.mirror]]", f'location = "127.0.0.1:{self.program.mirror}"', "insecure = true"]
        path = self.workspace / f"registries-{self.listener}.conf"
        path.write_text("\n".join(lines) + "\n")
        return path
