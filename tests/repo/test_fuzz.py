"""What strangers send, changed at random for a moment: nothing is raised that is not declared, and parsers agree.

`fuzzing.run` goes on for as long as one likes.
"""

import random

import pytest
from support import fuzzing


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_raised_that_is_not_declared(seed: int) -> None:
    assert fuzzing.run(seed, 2.0) > 100


def test_the_same_seed_begins_with_the_same_inputs() -> None:
    first, second = (random.Random(7) for _ in range(2))
    for _ in range(100):
        samples, words = fuzzing.REQUESTS, [b"x", b"y"]
        assert fuzzing.mutated(first, samples, words) == fuzzing.mutated(second, samples, words)


def test_a_finding_names_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "TARGETS", [(lambda data: 1 // 0, [b"sample"], [b"word"])])
    with pytest.raises(ZeroDivisionError) as raised:
        fuzzing.run(3, 10)
    assert "seed 3, input 0: b'" in raised.value.__notes__[0]
