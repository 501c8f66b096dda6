"""The commands about images: ls, show, pin, unpin, purge, and the completion of names."""

import json
import sys
from typing import Any

import pytest
from support.cli import DIGEST, OTHER_DIGEST, Call, ControlStandIn, Reply, image

HOSTILE = "evil/[red]x[/red]:\x1b[2J\u202e"


@pytest.fixture(autouse=True)
def images(control: ControlStandIn) -> list[dict[str, Any]]:
    """The images that the cache lists; a test may change them."""
    listed = [
        image("debian:12", requests=7, last_request=100.0),
        image("debian:13", stored_bytes=0, complete=False, pinned=True, platforms=["linux/amd64", "linux/arm64", "c"]),
        image("ghcr.io/o/n:1", private=True, stored_bytes=25 << 20, last_request=None, requests=0),
    ]
    control.replies["GET /v1/images"] = lambda _: Reply({"images": listed})
    return listed


class TestList:
    """hubcache ls"""

    def test_table_has_a_line_for_each_image(self, control: ControlStandIn) -> None:
        done = control.run("ls")
        assert (done.exit_code, done.stderr) == (0, "")
        lines = [line.split("  ") for line in done.stdout.splitlines()]
        assert lines[0][0].strip() == "IMAGE"
        assert [line[0] for line in lines[1:]] == ["debian:12", "debian:13", "ghcr.io/o/n:1"]
        assert "incomplete, pinned" in done.stdout
        assert "linux/amd64, linux/arm64 and 1 more" in done.stdout
        assert " 50 %" in done.stdout

    def test_json_is_what_the_cache_reports(self, control: ControlStandIn, images: list[dict[str, Any]]) -> None:
        assert json.loads(control.run("ls", "--json").stdout) == {"images": images}

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            (["--sort", "size"], ["debian:12", "ghcr.io/o/n:1", "debian:13"]),
            (["--sort", "requests"], ["debian:12", "debian:13", "ghcr.io/o/n:1"]),
            (["--sort", "last"], ["debian:13", "debian:12", "ghcr.io/o/n:1"]),
            (["debian"], ["debian:12", "debian:13"]),
            (["*3", "ghcr.io/*"], ["debian:13", "ghcr.io/o/n:1"]),
        ],
    )
    def test_images_are_chosen_and_sorted(
        self, control: ControlStandIn, arguments: list[str], names: list[str]
    ) -> None:
        listed = json.loads(control.run("ls", "--json", *arguments).stdout)["images"]
        assert [each["name"] for each in listed] == names

    def test_pattern_that_matches_nothing_is_not_found(self, control: ControlStandIn) -> None:
        done = control.run("ls", "nothing*")
        assert (done.exit_code, done.stdout, done.stderr) == (4, "", "hubcache: no stored image matches nothing*\n")

    def test_hostile_name_is_escaped(self, control: ControlStandIn, images: list[dict[str, Any]]) -> None:
        images[:] = [image(HOSTILE)]
        assert r"evil/[red]x[/red]:\x1b[2J\u202e " in control.run("ls").stdout
        assert json.loads(control.run("ls", "--json").stdout)["images"][0]["name"] == HOSTILE


class TestShow:
    """hubcache show"""

    @pytest.fixture
    def shown(self, control: ControlStandIn) -> dict[str, Any]:
        blobs = [
            {"digest": OTHER_DIGEST, "size": 1 << 20, "media_type": "application/layer", "stored": True},
            {"digest": DIGEST, "size": 10, "media_type": HOSTILE, "stored": False},
        ]
        first = {"digest": DIGEST, "platform": "linux/amd64", "size": 2 << 20, "complete": False, "stored": True}
        manifests = [
            first | {"attests": None, "blobs": blobs},
            first | {"attests": DIGEST, "platform": "unknown/unknown", "complete": True, "blobs": []},
            first | {"attests": None, "platform": "linux/s390x", "stored": False, "blobs": []},
        ]
        referrers = [{"digest": OTHER_DIGEST, "artifact_type": HOSTILE}]
        found = image() | {"manifests": manifests, "referrers": referrers, "validated": 900.0, "fresh_until": None}
        control.replies["GET /v1/image"] = Reply(found)
        return found

    def test_manifests_and_blobs_are_listed(self, control: ControlStandIn, shown: dict[str, Any]) -> None:
        done = control.run("show", "debian:12")
        assert control.calls == [Call("GET", "/v1/image?name=debian%3A12")]
        assert done.exit_code == 0
        assert f"linux/amd64  {DIGEST}  2.0 MiB, incomplete" in done.stdout
        assert f"{OTHER_DIGEST}  1.0 MiB  yes     application/layer" in done.stdout
        assert r"no      evil/[red]x[/red]:\x1b[2J\u202e" in done.stdout
        assert f"attestation of {DIGEST}  {DIGEST}  2.0 MiB, complete\n" in done.stdout
        assert "\nnot stored\nlinux/s390x\n" in done.stdout
        assert rf"{OTHER_DIGEST}  evil/[red]x[/red]:\x1b[2J\u202e" in done.stdout

    def test_json_is_what_the_cache_reports(self, control: ControlStandIn, shown: dict[str, Any]) -> None:
        assert json.loads(control.run("show", "debian", "--json").stdout) == shown

    def test_image_that_is_not_stored_is_not_found(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/image"] = Reply({"error": "debian:12 is not stored"}, 404)
        done = control.run("show", "debian:12", "--json")
        assert (done.exit_code, done.stdout, done.stderr) == (4, "", "hubcache: debian:12 is not stored\n")


class TestPin:
    """hubcache pin and unpin"""

    @pytest.fixture(params=["pin", "unpin"])
    def command(self, request: pytest.FixtureRequest, control: ControlStandIn) -> str:
        def answer(call: Call) -> Reply:
            name = call.body["image"]
            if name == "no":
                return Reply({"error": "no is refused"}, 409)
            return Reply({"image": name, "message": f"{name} is done"})

        control.replies[f"POST /v1/{request.param}"] = answer
        return str(request.param)

    def test_each_image_is_a_request(self, control: ControlStandIn, command: str) -> None:
        done = control.run(command, "debian", "alpine")
        assert (done.exit_code, done.stdout) == (0, "debian is done\nalpine is done\n")
        assert [call.body for call in control.calls] == [{"image": "debian"}, {"image": "alpine"}]

    def test_refusal_of_one_does_not_stop_the_others(self, control: ControlStandIn, command: str) -> None:
        done = control.run(command, "no", "debian", "--json")
        assert (done.exit_code, done.stderr) == (1, "hubcache: no: no is refused\n")
        assert json.loads(done.stdout)["images"] == [
            {"image": "no", "error": "no is refused"},
            {"image": "debian", "message": "debian is done"},
        ]

    def test_refusal_of_the_only_one_is_exit_code_4(self, control: ControlStandIn, command: str) -> None:
        assert control.run(command, "no").exit_code == 4


class TestPurge:
    """hubcache purge"""

    @pytest.fixture(autouse=True)
    def _purges(self, control: ControlStandIn) -> None:
        def answer(call: Call) -> Reply:
            if call.body.get("image") == "no":
                return Reply({"error": "no is not stored"}, 404)
            result = {"removed": [DIGEST, OTHER_DIGEST], "bytes": 3 << 20, "kept": [], "held": [], "being_read": []}
            result["removed_from_bucket"] = call.body["force"]
            more = {name: [DIGEST] for name in ("kept", "held", "being_read")}
            return Reply(result | (more if call.body["force"] else {}))

        control.replies["POST /v1/purge"] = answer

    @staticmethod
    def purged(control: ControlStandIn) -> list[Any]:
        bodies = [call.body for call in control.calls if call.path == "/v1/purge"]
        assert all(body.pop("force") is False for body in bodies)
        return bodies

    def test_force_is_passed_on_and_kept_content_is_reported(self, control: ControlStandIn) -> None:
        done = control.run("purge", "--force", "debian:12")
        assert control.calls[-1].body == {"image": "debian:12", "force": True}
        assert done.stdout == (
            "debian:12: removed 2 objects, 3.0 MiB; removed from the bucket; "
            "1 object kept, because other images use them; "
            "1 object kept for now, because another command stores or exports them; "
            "1 of the removed are being read, and their space is freed afterwards\n"
        )

    def test_image_is_removed_without_a_question_in_a_pipe(self, control: ControlStandIn) -> None:
        done = control.run("purge", "debian:12")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "debian:12: removed 2 objects, 3.0 MiB\n", "")
        assert self.purged(control) == [{"image": "debian:12"}]

    def test_tag_that_looks_like_a_hash_is_an_image(self, control: ControlStandIn) -> None:
        name = f"app:{'a' * 40}"  # such as that of a commit
        assert control.run("purge", name).exit_code == 0
        assert self.purged(control) == [{"image": name}]

    def test_digest_is_removed(self, control: ControlStandIn) -> None:
        assert control.run("purge", DIGEST).exit_code == 0
        assert self.purged(control) == [{"digest": DIGEST}]

    def test_pattern_removes_all_that_match_and_says_which(self, control: ControlStandIn) -> None:
        done = control.run("purge", "debian:*", "--json")
        assert self.purged(control) == [{"image": "debian:12"}, {"image": "debian:13"}]
        assert "To be removed from the store (2):\n" in done.stderr
        assert "\ndebian:12  50.0 MiB  " in done.stderr
        purged = json.loads(done.stdout)["purged"]
        assert [each["image"] for each in purged] == ["debian:12", "debian:13"]

    def test_pattern_that_matches_nothing_removes_nothing(self, control: ControlStandIn) -> None:
        done = control.run("purge", "debian:12", "nothing*")
        assert (done.exit_code, self.purged(control)) == (4, [])

    def test_image_named_twice_is_removed_once(self, control: ControlStandIn) -> None:
        control.run("purge", "debian:12", "debian:1[2]", "debian:12")
        assert self.purged(control) == [{"image": "debian:12"}]

    @pytest.mark.parametrize(("typed", "code", "count"), [("n\n", 1, 0), ("\n", 1, 0), ("", 1, 0), ("y\n", 0, 1)])
    def test_terminal_is_asked(
        self, control: ControlStandIn, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, count: int
    ) -> None:
        monkeypatch.setattr("hubcache.cli.purge.is_interactive", lambda: True)
        done = control.run("purge", "debian:12", stdin=typed)
        assert "Remove debian:12 from the store? [y/N]" in done.output
        assert (done.exit_code, len(self.purged(control))) == (code, count)

    def test_yes_asks_nothing(self, control: ControlStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hubcache.cli.purge.is_interactive", lambda: True)
        done = control.run("purge", "--yes", "debian:*")
        assert (done.exit_code, len(self.purged(control))) == (0, 2)
        assert "[y/N]" not in done.output

    def test_refusals_are_the_exit_code(self, control: ControlStandIn) -> None:
        assert control.run("purge", "no").exit_code == 4
        done = control.run("purge", "no", "debian:12")
        assert done.exit_code == 1
        assert "hubcache: no: no is not stored\n" in done.stderr


class TestCompletion:
    """Completion of image names in the shell, as the shell's script asks for it."""

    @staticmethod
    def completed(control: ControlStandIn, line: str) -> list[str]:
        from support.cli import run

        done = run(
            _HUBCACHE_COMPLETE="complete_bash",
            HUBCACHE_DIR=str(control.directory),
            COMP_WORDS=line.replace(" ", "\n"),  # as the script that --show-completion prints
            COMP_CWORD=str(len(line.split(" ")) - 1),
        )
        assert done.exit_code == 0
        return done.stdout.split()

    def test_names_of_stored_images_are_completed(self, control: ControlStandIn) -> None:
        assert self.completed(control, "hubcache show deb") == ["debian:12", "debian:13"]
        assert self.completed(control, "hubcache purge g") == ["ghcr.io/o/n:1"]

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("hubcache show debian : 13", ["13"]),
            ("hubcache show debian :", ["12", "13"]),
            ("hubcache purge debian : 12 debian : 13", ["13"]),
            ("hubcache show alpine : 1", []),
        ],
    )
    def test_tag_after_a_colon_is_completed_in_bash(
        self, control: ControlStandIn, words: str, found: list[str]
    ) -> None:
        """Bash replaces only what follows the colon."""
        assert self.completed(control, words) == found

    def test_commands_are_completed(self, control: ControlStandIn) -> None:
        assert self.completed(control, "hubcache un") == ["unpin"]

    def test_cache_that_does_not_run_completes_nothing(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/images"] = Reply({"error": "busy"}, 503)
        assert self.completed(control, "hubcache show deb") == []


def test_interactive_means_that_standard_input_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from hubcache.cli.purge import is_interactive

    for answer in (True, False):
        monkeypatch.setattr(sys.stdin, "isatty", lambda answer=answer: answer, raising=False)
        assert is_interactive() is answer
