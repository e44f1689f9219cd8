import numpy as np
import pytest

from clips_jax.data.bad_records import BadRecordCounter, TooManyBadRecords, allowed


def replaced(record=0, image=0):
    by_reason = {"record": record, "image": image}
    return {"bad_records": record + image, "by_reason": by_reason, "examples": ["at position 3: rotten"]}


def alone(counts):
    return counts


def test_counts_by_reason_go_on_from_a_checkpoint():
    counter = BadRecordCounter(0.1, {"bad_records": 5, "bad_records/image": 5})
    counter.add(replaced(record=2, image=1))
    expected = {"bad_records": 8, "bad_records/record": 2, "bad_records/image": 6}
    assert counter.count(1000, alone) == expected == counter.totals()
    assert counter.count(1000, alone) == expected  # counted once


def test_processes_decide_alike():
    """One process has all the damage: its share alone would be far too much, and all see the same total."""
    counters = [BadRecordCounter(0.1) for _ in range(4)]
    counters[2].add(replaced(image=30))
    total = sum(counter._here for counter in counters)
    assert [counter.count(1000, lambda _: total)["bad_records"] for counter in counters] == [30] * 4
    for counter in counters:
        counter.add(replaced(image=200))
        with pytest.raises(TooManyBadRecords, match=r"800 of 1000 .*max_bad_fraction = 0.1.*position 3: rotten"):
            counter.count(1000, lambda _: np.array([0, 800]))


def test_a_little_too_much_stops_in_the_end():
    counter = BadRecordCounter(0.1)
    with pytest.raises(TooManyBadRecords):
        for _ in range(200):  # 13 of 100: each time that could be chance
            counter.add(replaced(record=13))
            counter.count(100, alone)
    assert 5 < counter._records / 100 < 100


def test_what_chance_allows():
    assert allowed(1000, 0.0) == 0 and allowed(1000, 1.0) == 1000
    for fraction in (0.01, 0.1, 0.5):
        bad = np.random.default_rng(0).binomial(640, fraction, 20_000)
        assert (bad > allowed(640, fraction)).mean() < 0.003
