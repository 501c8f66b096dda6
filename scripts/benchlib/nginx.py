"""Runs nginx in its own directory, independent of the system configuration."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .certificates import Certificates
from .processes import listening, running

_MAIN = """\
daemon off;
worker_processes {workers};
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 4096; }}
http {{
    default_type application/octet-stream;
    keepalive_requests 1000000;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
{http}
}}
"""


@contextmanager
def nginx(directory: Path, workers: int, http: str, *ports: int) -> Iterator[int]:
    """Run nginx with `http` as the content of its http block, and yield the process id of the master.

    Workers run as the current user, because only this user can read the files of the benchmark.
    """
    directory.mkdir(parents=True)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(user + _MAIN.format(workers=workers, http=http))
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-p", directory, "-c", directory / "nginx.conf"]
    with running(command, directory, listening(*ports)) as pid:
        yield pid


def tls(certificates: Certificates, port: int) -> str:
    """The directives of a TLS listener.

    TLS 1.2 is enabled for nginx as a client, which uses no later version; all other clients use TLS 1.3. `reuseport`
    distributes connections evenly over the workers.
    """
    return (
        f"listen 127.0.0.1:{port} ssl reuseport; ssl_protocols TLSv1.2 TLSv1.3; "
        f"ssl_certificate {certificates.certificate}; ssl_certificate_key {certificates.key};"
    )
