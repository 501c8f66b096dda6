"""tinyproxy as the outbound proxy of a company's network, whose connections are recognised by their source address."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.ports import free_port
from support.processes import Daemon, accepts_connections
from support.required import require

SOURCE = "127.0.0.9"
"""The address from which tinyproxy connects to servers; everything else in the tests connects from 127.0.0.1."""

USER, PASSWORD = "ann", "outbound-password"


class Tinyproxy:
    """A proxy that requires credentials, at a port of 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.log_file = directory / "tinyproxy.log"
        configuration = directory / "tinyproxy.conf"
        configuration.write_text(
            f"Port {self.port}\nListen 127.0.0.1\nBind {SOURCE}\nTimeout 600\nMaxClients 200\nLogLevel Connect\n"
            f"BasicAuth {USER} {PASSWORD}\n"
        )
        self.daemon = Daemon(["tinyproxy", "-d", "-c", configuration], self.log_file)

    @property
    def url(self) -> str:
        """The URL with credentials, as in `HTTPS_PROXY`."""
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@contextlib.contextmanager
def running_tinyproxy() -> Iterator[Tinyproxy]:
    """Run tinyproxy; skips the test where it is not installed."""
    require("tinyproxy")
    directory = Path(tempfile.mkdtemp(prefix="tinyproxy-test-"))
    try:
        proxy = Tinyproxy(directory)
        proxy.daemon.start(lambda: accepts_connections(proxy.port))
        try:
            yield proxy
        finally:
            proxy.daemon.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
