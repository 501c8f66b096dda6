"""Reads the metrics of a running cache."""

import urllib.request
from dataclasses import dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from .processes import BenchError
from .server import Server

_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one or more caches at one time."""

    samples: tuple[Sample, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text format of Prometheus."""
        return cls(tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples))

    @classmethod
    def read(cls, *servers: Server) -> Self:
        """Read the metrics of servers that have a status page. Raises `BenchError`."""
        return cls(tuple(sample for server in servers for sample in cls.parse(_read(server)).samples))

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of this name that have these labels; 0 if there are none."""
        return sum(one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items())


def _read(server: Server) -> str:
    try:
        with urllib.request.urlopen(f"{server.status}/metrics", timeout=_SECONDS) as answer:
            return str(answer.read().decode())
    except OSError as error:
        raise BenchError(f"{server.name}: its metrics cannot be read: {error}") from error
