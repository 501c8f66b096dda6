"""A short fuzz of the parsers of untrusted input: only declared errors are raised, and parsers agree.

scripts/soak fuzzes for longer.
"""

import pytest
from support import fuzzing


@pytest.mark.parametrize("seed", range(4))
def test_only_declared_errors_are_raised(seed: int) -> None:
    assert fuzzing.run(seed, 2.0) > 100


def test_the_same_seed_begins_with_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        monkeypatch.setattr(fuzzing, "TARGETS", [(seen.append, samples, words) for _, samples, words in targets])
        assert fuzzing.run(seed, 0.2) == len(seen) > 100
        return seen

    targets = fuzzing.TARGETS
    first, again, other = inputs(7), inputs(7), inputs(8)
    assert all(one == two for one, two in zip(first, again, strict=False))
    assert first[:100] != other[:100]


def test_a_finding_names_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "TARGETS", [(lambda data: 1 // 0, [b"sample"], [b"word"])])
    with pytest.raises(ZeroDivisionError) as raised:
        fuzzing.run(3, 10)
    assert "seed 3, input 0: b'" in raised.value.__notes__[0]
