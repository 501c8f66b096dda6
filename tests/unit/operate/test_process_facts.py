"""Facts about the running program."""

import json
import os
from pathlib import Path

from hubcache.operate.process_facts import ListenAddress, ProcessFacts, open_descriptors


def test_facts_are_json() -> None:
    facts = ProcessFacts((ListenAddress("mirror", "::", 5000),), Path("/ca.pem"), None, "12.3.1", None)
    assert json.loads(json.dumps(facts.addresses())) == [{"kind": "mirror", "host": "::", "port": 5000}]
    report = json.loads(json.dumps(facts.report()))
    assert (report["ca_certificate"], report["config_file"], report["pid"]) == ("/ca.pem", None, os.getpid())
    assert report["descriptors"]["limit"] > 0


def test_open_descriptors_are_counted() -> None:
    before = open_descriptors()
    with Path(os.devnull).open():
        after = open_descriptors()
    assert before is None or after == before + 1
