"""A base image with Python for the image of the program: the base layer, with the Python that runs the tests."""

import gzip
import io
import os
import re
import ssl
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.processes import run
from support.uv import uv

from .base_layer import base_layer, cache_directory

VERSION = 1
"""Part of the cached file's name. Raise it when the content of the file changes."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT = ("PATH=/usr/local/bin:/usr/bin:/bin", f"SSL_CERT_FILE={CERTIFICATES}")
_UNUSED = {"test", "idlelib", "tkinter", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
_UNUSED_MODULES = re.compile(r"(config-|_tkinter\.|_test|_ctypes_test|xx)")


def _shared_libraries(files: list[Path]) -> dict[str, Path]:
    """Return the libraries that programs and modules load, by the names by which they load them."""
    found = re.findall(r"^\s+(\S+) => (/\S+)", "".join(run("ldd", file) for file in files), re.MULTILINE)
    return {name: Path(path) for name, path in found}


def _python_files(pip: Path) -> Iterator[tuple[str, Path]]:
    """Yield the paths in the image, and the files of this machine: Python with its libraries, pip and certificates."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable, library = Path(os.path.realpath(sys.executable)), Path(sysconfig.get_path("stdlib"))
    modules = [
        path
        for path in library.rglob("*")
        if path.is_file() and not any(part in _UNUSED or _UNUSED_MODULES.match(part) for part in path.parts)
    ]
    for alias in (name, "python3"):
        yield f"usr/local/bin/{alias}", executable
    for path in modules:
        yield f"usr/local/lib/{name}/{path.relative_to(library)}", path
    # In the library itself: where else packages are found depends on the distribution.
    for path in (path for path in pip.rglob("*") if path.is_file() and "bin" not in path.parts):
        yield f"usr/local/lib/{name}/{path.relative_to(pip)}", path
    directory = sysconfig.get_config_var("MULTIARCH")
    for library_name, path in _shared_libraries(
        [executable, *(path for path in modules if path.suffix == ".so")]
    ).items():
        yield f"usr/lib/{directory}/{library_name}", path
    yield (
        CERTIFICATES[1:],
        Path(os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or CERTIFICATES),
    )


def python_base() -> Path:
    """Return the file with the image's root file system, a tar. It takes some seconds unless it is cached."""
    cached = cache_directory() / f"python-base-{sys.version.split()[0]}-v{VERSION}.tar"
    if cached.exists():
        return cached
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix="making-") as making:
        pip, made = Path(making, "pip"), Path(making, "base.tar")
        run(uv(), "pip", "install", "--quiet", "--python", sys.executable, "--target", pip, "pip", env=dict(os.environ))
        with (
            tarfile.open(fileobj=io.BytesIO(gzip.decompress(base_layer()))) as base,
            tarfile.open(made, "w", format=tarfile.PAX_FORMAT, dereference=True) as image,
        ):
            present = set()
            for member in base:
                present.add(member.name.removeprefix("./"))
                image.addfile(member, base.extractfile(member) if member.isreg() else None)
            for name, path in _python_files(pip):
                if name not in present:
                    image.add(path, name)
        made.rename(cached)
    return cached
