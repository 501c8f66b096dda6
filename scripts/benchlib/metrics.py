"""Reads the metrics of a running cache."""

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from .server import Server

_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics at one time."""

    samples: tuple[Sample, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text format of Prometheus."""
        return cls(tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples))

    @classmethod
    def read(cls, server: Server) -> Self:
        """Read the metrics of a server that has a status page; raises `OSError`."""
        with urllib.request.urlopen(f"{server.status}/metrics", timeout=_SECONDS) as answer:
            return cls.parse(answer.read().decode())

    def total(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """Return the sum of all samples of this name that have these labels; 0 if there are none."""
        wanted = (labels or {}).items()
        return sum(each.value for each in self.samples if each.name == name and wanted <= each.labels.items())
