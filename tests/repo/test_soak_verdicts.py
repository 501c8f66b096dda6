"""scripts/soak compares measurements over time, and treats missing ones as failures."""

import pytest
from soaklib.hostility import AttackFailedError, sampling
from soaklib.outcome import MIN_SAMPLES, Interval, Outcome, TooFewSamplesError
from soaklib.process import Sample
from soaklib.pulls import Pull, Results
from soaklib.report import rows_of_run
from support.http_client import wait_until

FINE = Pull("fine", "proxy", 1, 2)


def samples(*readings: tuple[int, int, int], begun: float = 0.0) -> list[Sample]:
    """Readings of memory, descriptors and tasks, one a second."""
    return [Sample(begun + second, *reading) for second, reading in enumerate(readings)]


def verdicts(outcome: Outcome) -> dict[str, bool]:
    """Whether each promise of a run without kills holds, by the first words of the promise."""
    return {" ".join(row.promise.split()[:2]): row.holds for row in rows_of_run(outcome, 60.0, 0)}


def growth(outcome: Outcome) -> tuple[bool, bool, bool]:
    """Whether the growth of memory, descriptors and tasks is within its bounds."""
    found = verdicts(outcome)
    return found["memory of"], found["descriptors of"], found["tasks of"]


LOW, HIGH = (100 << 20, 50, 30), (150 << 20, 90, 90)


def test_growth_is_a_failure() -> None:
    assert growth(Outcome(Results(), samples=samples(*[LOW] * 10, *[HIGH] * 10))) == (False, False, False)
    assert growth(Outcome(Results(), samples=samples(*[LOW] * 20))) == (True, True, True)


def test_too_few_samples_are_a_failure() -> None:
    assert growth(Outcome(Results())) == (False, False, False)
    assert growth(Outcome(Results(), samples=samples(*[LOW] * (MIN_SAMPLES - 1)))) == (False, False, False)
    assert growth(Outcome(Results(), samples=samples(*[LOW] * MIN_SAMPLES))) == (True, True, True)


def test_a_reading_of_0_is_a_failure() -> None:
    outcome = Outcome(Results(), samples=samples(*[LOW] * 10, (100 << 20, 50, 0)))
    assert growth(outcome) == (True, True, False)
    with pytest.raises(TooFewSamplesError, match="1 of 11 samples read 0"):
        outcome.thirds("tasks")


def test_growth_compares_calm_times_only() -> None:
    """Resources used during a fault neither hide growth nor count as growth."""
    calm = samples(*[LOW] * 10)
    late = samples(*[HIGH] * 20, begun=10.0)
    assert growth(Outcome(Results(), [Interval("fault", 10.0, 30.0)], calm + late)) == (True, True, True)
    early = samples(*[HIGH] * 10, *[LOW] * 10, *[HIGH] * 10)
    assert growth(Outcome(Results(), [Interval("fault", 0.0, 10.0)], early)) == (False, False, False)


def test_samples_of_faults_alone_are_too_few() -> None:
    outcome = Outcome(Results(), [Interval("fault", 0.0)], samples(*[LOW] * 20))
    assert growth(outcome) == (False, False, False)


def test_the_warm_up_is_not_compared() -> None:
    """Growth in the warm-up is not growth, and growth after it is."""
    warming = samples((10 << 20, 5, 5), *[LOW] * 10)
    assert Outcome(Results(), samples=warming, warm_at=1.0).thirds("memory") == (100 << 20, 100 << 20)
    assert len(Outcome(Results(), samples=warming, warm_at=1.0).calm) == 10
    later = samples(*[LOW] * 10, *[HIGH] * 10)
    assert growth(Outcome(Results(), samples=later, warm_at=3.0)) == (False, False, False)


def test_a_run_without_a_pull_proves_nothing() -> None:
    found = verdicts(Outcome(Results([Pull("app", "proxy", 1, 2, "broken")]), [Interval("fault", 0.0)], over_cap=0))
    assert (found["no client"], found["no pull"], found["the cap"]) == (False, False, True)
    found = verdicts(Outcome(Results([FINE])))
    assert (found["no client"], found["no pull"], found["the cap"]) == (True, True, False)


def test_the_highest_measurement_counts() -> None:
    values = [7, 9, 5, None]
    with sampling(lambda: values.pop() if values else 7) as peak:
        wait_until(lambda: not values)
    assert peak.most == 9


def test_a_missing_measurement_is_an_error() -> None:
    with pytest.raises(AttackFailedError, match="never measured"), sampling(lambda: None):
        pass


def test_a_crash_of_a_measurement_is_raised() -> None:
    def crash() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), sampling(crash):
        pass
