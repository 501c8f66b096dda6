"""The upstream of these tests without the cache. When this fails, the failure is not the cache's."""

from pathlib import Path

import pytest
from support.e2e.upstream import PASSWORD, USER, Upstream
from support.processes import run
from support.required import require
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_skopeo_copies_an_image_within_the_hub_and_pulls_it(hub: Hub, upstream: Upstream, tmp_path: Path) -> None:
    require("skopeo")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    copy = ["skopeo", "--policy", str(tmp_path / "policy.json"), "copy", "--src-tls-verify=false"]
    address = f"docker://localhost:{hub.ports['registry']}"
    copied = f"{address}/{USER}/copy:1"
    push = ["--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}"]
    run(*copy, *push, f"{address}/library/webapp:1.0", copied)
    run(*copy, copied, f"dir:{tmp_path}/out")
    assert (tmp_path / "out/manifest.json").read_bytes() == upstream.webapp.manifest
    for layer in upstream.webapp.layers:
        assert (tmp_path / "out" / layer.removeprefix("sha256:")).exists()
    assert hub.count(kind="upload", user=USER) > 0
