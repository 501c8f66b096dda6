"""`hubcache warm`: which images are fetched, what is printed, and the exit codes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hubcache.cli.errors import FAILURES, UNREACHABLE, USAGE
from hubcache.cli.warm import default_platform
from support.cli import DIGEST, ControlStandIn, Reply, run


def image(name: str, state: str, error: str | None = None, received: int = 0) -> dict[str, Any]:
    return {
        **{"kind": "image", "image": name, "digest": DIGEST, "size": 2048, "received": received},
        **{"state": state, "error": error},
    }


def done(**counts: Any) -> dict[str, Any]:
    summary = {"done": True, "stored": 0, "failed": 0, "skipped": 0, "received": 0, "upstream_requests": 1}
    return {**summary, "ratelimit": [], **counts}


def layer(name: str, state: str, received: int, error: str | None = None) -> dict[str, Any]:
    return image(name, state, error, received) | {"kind": "blob"}


def answer(control: ControlStandIn, *events: dict[str, Any]) -> None:
    control.replies["POST /v1/warm"] = Reply(events=list(events))


def sent(control: ControlStandIn) -> dict[str, Any]:
    (call,) = control.calls
    return dict(call.body)


def test_images_are_fetched_for_the_platform_of_this_machine(control: ControlStandIn) -> None:
    answer(
        control,
        image("debian:12", "running"),
        layer("debian:12", "running", 100),
        image("debian:12", "stored", received=2048),
        image("redis", "stored"),
        done(
            stored=2,
            received=2048,
            upstream_requests=7,
            ratelimit=[{"registry": "registry-1.docker.io", "before": 98, "after": 96}],
        ),
    )
    result = control.run("warm", "debian:12", "redis", "debian:12")
    assert result.exit_code == 0, result.output
    assert sent(control) == {"images": ["debian:12", "redis"], "keep": False, "platforms": [default_platform()]}
    assert result.stdout.splitlines() == [
        "debian:12: fetching",
        "debian:12: stored, 2.0 KiB, 2.0 KiB received",
        "redis: stored, 2.0 KiB, was stored already",
        "2 stored; 2.0 KiB received, 7 requests to registries",
        "rate limit of registry-1.docker.io: 96 requests remaining, 2 fewer than before",
    ]


@pytest.mark.parametrize(
    ("arguments", "platforms"),
    [
        (["--all-platforms"], None),
        (["--platform", "linux/arm64", "--platform", "linux/386"], ["linux/arm64", "linux/386"]),
    ],
)
def test_platforms_and_pin_are_sent(control: ControlStandIn, arguments: list[str], platforms: object) -> None:
    answer(control, done(stored=1))
    assert control.run("warm", "redis", "--pin", *arguments).exit_code == 0
    assert sent(control) == {"images": ["redis"], "keep": True, "platforms": platforms}


def test_failed_image_is_an_error(control: ControlStandIn) -> None:
    answer(
        control,
        layer("redis", "failed", 10, "it is \x1b[31mdamaged"),
        image("redis", "failed", "it is damaged"),
        done(failed=1),
    )
    result = control.run("warm", "redis")
    assert result.exit_code == FAILURES
    assert f"redis: {DIGEST} failed: it is \\x1b[31mdamaged" in result.stdout
    assert "redis: failed: it is damaged" in result.stdout
    assert "1 failed; 0 B received, 1 request to registries" in result.stdout


def test_skipped_image_is_an_error_only_where_it_was_named(control: ControlStandIn, tmp_path: Path) -> None:
    answer(control, image("ghcr.io/o/n:1", "skipped", "not served"), done(skipped=1))
    (tmp_path / "list").write_text("ghcr.io/o/n:1\n")
    listed = control.run("warm", "-f", str(tmp_path / "list"))
    assert listed.exit_code == 0
    assert "ghcr.io/o/n:1: skipped: not served" in listed.stdout
    assert control.run("warm", "ghcr.io/o/n:1").exit_code == FAILURES


def test_json_is_an_event_a_line(control: ControlStandIn) -> None:
    events = [image("redis", "running"), layer("redis", "stored", 5), image("redis", "stored"), done(stored=1)]
    answer(control, *events)
    result = control.run("warm", "redis", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == events


def test_images_of_files_and_of_standard_input_are_fetched(control: ControlStandIn, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {web: {image: 'nginx:1'}}\n")
    answer(control, done(stored=2))
    result = control.run("warm", "-f", str(tmp_path / "compose.yaml"), "-f", "-", stdin="redis\n")
    assert result.exit_code == 0, result.output
    assert sent(control)["images"] == ["nginx:1", "redis"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an image"),
        (["-f", "missing"], "missing cannot be read: No such file"),
        (["-f", "binary"], "binary is not UTF-8"),
        (["-f", "empty"], "empty: it names no images"),
        (["redis", "--platform", "linux/arm64", "--all-platforms"], "exclude each other"),
    ],
)
def test_wrong_usage_sends_nothing(
    control: ControlStandIn, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("# none\n")
    result = control.run("warm", *arguments)
    assert (result.exit_code, control.calls) == (USAGE, [])
    assert message in result.stderr


def test_cache_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    assert run("warm", "redis", HUBCACHE_DIR=str(tmp_path)).exit_code == UNREACHABLE


# -- a cluster -------------------------------------------------------------------------------------------------------


def kubectl(directory: Path, script: str) -> str:
    """Put a program called kubectl into the directory; return a PATH with it."""
    program = directory / "kubectl"
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_images_of_a_cluster_are_fetched(
    control: ControlStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = {
        "items": [
            {
                "spec": {"containers": [{"image": "nginx:1"}]},
                "status": {"containerStatuses": [{"imageID": f"docker.io/library/nginx@{DIGEST}"}]},
            }
        ]
    }
    check = "assert sys.argv[1:] == ['get', 'pods', '--all-namespaces', '--output', 'json'], sys.argv"
    monkeypatch.setenv("PATH", kubectl(tmp_path, f"{check}\nprint({json.dumps(pods)!r})"))
    answer(control, done(stored=2))
    assert control.run("warm", "redis", "--cluster").exit_code == 0
    assert sent(control)["images"] == ["redis", "nginx:1", f"docker.io/library/nginx@{DIGEST}"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit('log\\nThe connection to the server was refused')", "kubectl failed: The connection to the server"),
        ("sys.exit(3)", "kubectl failed: exit code 3"),
        ("print('no JSON')", "kubectl: its output is not JSON"),
        ("print('{\"items\": []}')", "the cluster runs no pods"),
    ],
)
def test_kubectl_that_fails_is_an_error(
    control: ControlStandIn, script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", kubectl(tmp_path, script))
    result = control.run("warm", "--cluster")
    assert (result.exit_code, control.calls) == (FAILURES, [])
    assert message in result.stderr


def test_missing_kubectl_is_an_error(control: ControlStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = control.run("warm", "--cluster")
    assert (result.exit_code, control.calls) == (FAILURES, [])
    assert "kubectl, which is not installed" in result.stderr
