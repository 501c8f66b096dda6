"""The command line starts quickly: it imports no large library before it needs one."""

import subprocess
import sys

from support.paths import ADDON

SLOW = ("mitmproxy", "aiohttp", "cryptography", "ruamel", "sqlite3", "asyncio")


def test_help_imports_no_large_library() -> None:
    code = (
        "import sys; from hubcache.cli.main import app; app(['--help'], standalone_mode=False); "
        "print('\\nimported:', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ADDON, capture_output=True, text=True, timeout=60, check=True
    )
    assert "Usage: " in done.stdout
    imported = done.stdout.rpartition("imported:")[2].split()
    assert "typer" in imported
    assert set(SLOW) & set(imported) == set()
