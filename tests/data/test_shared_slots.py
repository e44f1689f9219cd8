"""Slots of shared memory: who may fill which, and that what a worker leaves there is what the reader finds."""

import gc
import multiprocessing
import os
import pathlib
import pickle

import numpy as np
import pytest

from clips_jax.data import worker
from clips_jax.data.shared_slots import SharedSlots

LAYOUT = [((5, 3), np.uint8), ((2, 2), np.int32)]  # 15 bytes: the next array must be aligned all the same
PER_WORKER = 2

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared slots are for Linux")


@pytest.fixture
def as_worker(monkeypatch):
    return lambda number: monkeypatch.setattr(worker, "number", number)


def test_a_worker_takes_its_own_slots_until_none_is_free(as_worker):
    slots = SharedSlots(LAYOUT, workers=3, per_worker=PER_WORKER)
    assert slots.take() is None  # this is no worker
    taken = {}
    for number in (1, 0, 2):
        as_worker(number)
        taken[number] = [slots.take() for _ in range(PER_WORKER)]
        assert slots.take() is None
    assert sorted(sum(taken.values(), [])) == list(range(3 * PER_WORKER))
    slots.free(taken[1][1])
    assert slots.take() is None  # of worker 2
    as_worker(1)
    assert slots.take() == taken[1][1] and slots.take() is None


def test_arrays_are_apart(as_worker):
    slots = SharedSlots(LAYOUT, workers=1, per_worker=PER_WORKER)
    as_worker(0)
    for value in range(PER_WORKER):
        for number, array in enumerate(slots.arrays(slots.take())):
            array[:] = 10 * value + number
    for value in range(PER_WORKER):
        for number, (array, (shape, dtype)) in enumerate(zip(slots.arrays(value), LAYOUT, strict=True)):
            np.testing.assert_array_equal(array, np.full(shape, 10 * value + number, dtype), strict=True)


def _fill(pickled: bytes, pipe) -> None:
    worker.number = 1
    slots = pickle.loads(pickled)
    slot = slots.take()
    slots.arrays(slot)[1][:] = [[1, 2], [3, 4]]
    pipe.send((slot, slots.take(), slots.take()))


def test_another_process_fills_the_same_memory():
    slots = SharedSlots(LAYOUT, workers=2, per_worker=PER_WORKER)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(pickle.dumps(slots), theirs))
    process.start()
    slot, second, third = ours.recv()
    process.join()
    assert sorted((slot, second)) == [2, 3] and third is None
    np.testing.assert_array_equal(slots.arrays(slot)[1], [[1, 2], [3, 4]])


def test_nothing_to_take_where_the_memory_cannot_be_had(as_worker, monkeypatch):
    as_worker(0)

    def refuse(*_):
        raise OSError

    for name in ("memfd_create", "ftruncate"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            slots = SharedSlots(LAYOUT, workers=1, per_worker=1)
        assert slots.take() is None and pickle.loads(pickle.dumps(slots)).take() is None
    monkeypatch.delattr(os, "memfd_create")
    slots = SharedSlots(LAYOUT, workers=1, per_worker=1)
    assert slots.take() is None and pickle.loads(pickle.dumps(slots)).take() is None


def test_another_file_in_its_place_is_left_alone(as_worker, tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    slots = SharedSlots(LAYOUT, workers=1, per_worker=1)
    [number] = [int(name) for name in set(os.listdir("/proc/self/fd")) - before if "memfd" in _target(name)][:1]
    pickled = pickle.dumps(slots)
    del slots
    gc.collect()
    as_worker(0)
    assert pickle.loads(pickled).take() is None
    zeros = bytes(10_000)
    (tmp_path / "other").write_bytes(zeros)
    with open(tmp_path / "other", "r+b") as other:
        os.dup2(other.fileno(), number)
        assert pickle.loads(pickled).take() is None
        os.close(number)
    assert (tmp_path / "other").read_bytes() == zeros


def test_the_memory_goes_with_its_users():
    def users() -> int:
        maps = pathlib.Path("/proc/self/maps").read_text().count("clips_jax_parts")
        return maps + sum("clips_jax_parts" in _target(name) for name in os.listdir("/proc/self/fd"))

    before = users()
    slots = SharedSlots(LAYOUT, workers=1, per_worker=1)
    assert users() > before
    del slots
    gc.collect()
    assert users() == before


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:  # the listing's own
        return ""
