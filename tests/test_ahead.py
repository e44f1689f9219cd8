import time

import numpy as np
import pytest

from clips_jax.ahead import BatchesAhead

REPLACED = {"bad_records": 0, "by_reason": {}, "examples": []}


class Running:
    """Stands for the arrays of a step that takes a while."""

    def __init__(self, seconds):
        self._end = time.perf_counter() + seconds

    def block_until_ready(self):
        time.sleep(max(0.0, self._end - time.perf_counter()))
        return self


def slow(count, seconds):
    for number in range(count):
        time.sleep(seconds)
        yield number, REPLACED


def test_batches_keep_their_order_and_are_put_once():
    put = []
    ahead = BatchesAhead(slow(5, 0.0), lambda batch: put.append(batch) or batch * 10)
    assert [ahead.next()[0] for _ in range(5)] == [0, 10, 20, 30, 40] and put == [0, 1, 2, 3, 4]
    with pytest.raises(StopIteration):
        ahead.next()
    ahead.close()


def test_the_next_batch_is_put_before_it_is_asked_for():
    put = []
    ahead = BatchesAhead(slow(5, 0.0), lambda batch: put.append(batch) or batch)
    ahead.next()
    time.sleep(0.1)  # the step runs
    assert put == [0, 1]
    ahead.close()


@pytest.mark.parametrize("loading, step, expected", [(0.1, 0.0, 1.0), (0.1, 0.05, 0.5), (0.02, 0.1, 0.0)])
def test_only_idle_devices_count_as_waiting(loading, step, expected):
    ahead = BatchesAhead(slow(8, loading), lambda batch: batch)
    ahead.next()
    ahead.restart()
    for _ in range(6):
        running = Running(step)
        if loading < step:
            running.block_until_ready()  # as the loop does when it reads metrics
        ahead.next(running)
    assert ahead.wait_share() == pytest.approx(expected, abs=0.25)
    assert ahead.wait_share() < 0.01  # counted once
    ahead.close()


def test_errors_of_the_loader_arrive():
    def broken():
        yield np.zeros(1), REPLACED
        raise RuntimeError("a data worker died")

    ahead = BatchesAhead(broken(), lambda batch: batch)
    ahead.next()
    with pytest.raises(RuntimeError, match="a data worker died"):
        ahead.next()
    ahead.close()
