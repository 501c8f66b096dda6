"""A histogram is rendered as that of prometheus_client would be."""

import prometheus_client
from hubcache.operate.histogram import Histogram
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

BOUNDS = (0.001, 0.25, 1.0, 600.0)
VALUES = st.sampled_from((0.0, *BOUNDS)) | st.floats(0, 1000)


@given(st.lists(st.tuples(st.sampled_from("ab"), VALUES), max_size=20))
def test_histogram_is_rendered_as_that_of_the_library(observed: list[tuple[str, float]]) -> None:
    own, theirs = CollectorRegistry(), CollectorRegistry()
    ours = Histogram("seconds", "Help.", ["kind"], BOUNDS, own)
    prometheus_client.disable_created_metrics()
    reference = prometheus_client.Histogram("seconds", "Help.", ["kind"], buckets=BOUNDS, registry=theirs)
    for label, value in observed:
        ours.observe((label,), value)
        reference.labels(label).observe(value)
    assert generate_latest(own) == generate_latest(theirs)
