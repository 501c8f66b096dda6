"""Reads metrics as a Prometheus server does."""

from hubcache.operate.metrics import Metrics
from prometheus_client.parser import text_string_to_metric_families


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return the value of the sample with exactly these labels, or None if there is no such sample."""
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None
