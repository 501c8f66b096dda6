"""The progress of the images that a command fetches, and the events that report it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..oci.digest import Digest
from ..transfer.fills import Fills


class State(StrEnum):
    """The state of an image or a layer; `SKIPPED` is an image of a registry that the cache does not serve."""

    WAITING = "waiting"
    RUNNING = "running"
    STORED = "stored"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True)
class Layer:
    """A blob of an image; `size` and `received` in bytes. One that was stored before is not received."""

    digest: Digest
    size: int
    state: State = State.WAITING
    received: int = 0
    was_stored: bool = False
    error: str | None = None


class ImageProgress:
    """The progress of one image, which has the name that the operator wrote."""

    def __init__(self, name: str, fills: Fills) -> None:
        self.name = name
        self.digest: Digest | None = None
        self.layers: list[Layer] = []
        self.state = State.WAITING
        self._error: str | None = None
        self._fills = fills
        self._reported: dict[str, dict[str, Any]] = {}

    @property
    def is_reported(self) -> bool:
        """Whether the image has ended, and all of it was reported: then `changes` returns nothing more."""
        return (
            self.state not in (State.WAITING, State.RUNNING) and self._reported.get("", {}).get("state") is self.state
        )

    @property
    def received(self) -> int:
        """Bytes of layers that were downloaded."""
        return sum(layer.received for layer in self.layers)

    def end(self, state: State, error: str | None = None) -> None:
        """Set the last state of the image."""
        self.state, self._error = state, error

    def changes(self, *, again: bool = False) -> list[dict[str, Any]]:
        """Return an event for each layer, and for the image, that changed since the last call.

        `again`: the image is reported although it did not change, if it is running.
        """
        if self.state is State.WAITING and self._reported:
            return []
        events = []
        for layer in self.layers:
            self._update(layer)
            event = {
                **{"kind": "blob", "image": self.name, "digest": layer.digest, "size": layer.size},
                **{"received": layer.received, "state": layer.state, "error": layer.error},
            }
            events += self._if_changed(layer.digest, event)
        event = {
            **{"kind": "image", "image": self.name, "digest": self.digest},
            **{"size": sum(layer.size for layer in self.layers), "received": self.received},
            **{"state": self.state, "error": self._error},
        }
        return events + self._if_changed("", event, again=again and self.state is State.RUNNING)

    def _update(self, layer: Layer) -> None:
        """Read from the fill how much of a layer has arrived."""
        if layer.was_stored:
            return
        if layer.state is State.STORED:
            layer.received = layer.size
        elif layer.state is State.RUNNING and (fill := self._fills.get(layer.digest)) is not None:
            layer.received = fill.written

    def _if_changed(self, key: str, event: dict[str, Any], *, again: bool = False) -> list[dict[str, Any]]:
        if not again and self._reported.get(key) == event:
            return []
        self._reported[key] = event
        return [event]
