"""The events about an image: each change once, and nothing after its end."""

from types import SimpleNamespace
from typing import Any, cast

from hubcache.control.warm_progress import ImageProgress, Layer, State
from hubcache.oci.digest import Digest
from hubcache.transfer.fills import Fills

A, B = Digest.of(b"a"), Digest.of(b"b")


class RunningFills:
    """Fills with what they have written, by digest."""

    def __init__(self) -> None:
        self.written: dict[Digest, int] = {}

    def get(self, digest: Digest) -> Any:
        return SimpleNamespace(written=self.written[digest]) if digest in self.written else None


def changes(image: ImageProgress, **options: bool) -> list[tuple[str, str, int]]:
    return [(event["kind"], event["state"], event["received"]) for event in image.changes(**options)]


def test_each_change_is_reported_once() -> None:
    fills = RunningFills()
    image = ImageProgress("app:1", cast(Fills, fills))
    assert changes(image) == [("image", "waiting", 0)]
    assert changes(image) == []
    image.state, image.layers = State.RUNNING, [Layer(A, 10), Layer(B, 20)]
    assert changes(image) == [("blob", "waiting", 0), ("blob", "waiting", 0), ("image", "running", 0)]
    image.layers[0].state, fills.written[A] = State.RUNNING, 4
    assert changes(image) == [("blob", "running", 4), ("image", "running", 4)]
    assert changes(image) == []
    assert changes(image, again=True) == [("image", "running", 4)]
    image.layers[0].state = State.STORED
    assert not image.is_reported
    image.layers[1].state, image.layers[1].was_stored = State.STORED, True
    image.end(State.STORED)
    assert not image.is_reported
    assert changes(image) == [("blob", "stored", 10), ("blob", "stored", 0), ("image", "stored", 10)]
    assert image.is_reported
    assert changes(image, again=True) == []


def test_failure_is_reported_with_its_reason() -> None:
    image = ImageProgress("app:1", cast(Fills, RunningFills()))
    image.end(State.FAILED, "the reason")
    (event,) = image.changes()
    assert (event["state"], event["error"], event["digest"], event["size"]) == ("failed", "the reason", None, 0)
