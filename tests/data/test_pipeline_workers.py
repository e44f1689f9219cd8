"""Loading in worker processes: the same batches, whatever travels how, and an end when a worker ends."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from clips_jax.data import pipeline
from clips_jax.data.pipeline import train_batches
from clips_jax.data.shared_slots import SharedSlots
from tests.data.tiny_set import BATCH, assert_same, build, leaves, load, make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tfds"))


def test_worker_processes_give_the_same_batches(folder):
    assert_same(load(make_config(folder), stop=7), load(make_config(folder, workers=2), stop=7))


@pytest.mark.parametrize("per_worker", [0, 1, 50])
def test_batches_do_not_depend_on_shared_slots(folder, monkeypatch, per_worker):
    """None, too few for what is loaded ahead, and more than enough; three parts a step, the last one smaller."""
    monkeypatch.setattr(pipeline, "ROWS_PER_PART", 4)
    expected = load(make_config(folder), stop=12)
    freed = []
    if per_worker == 0:
        monkeypatch.delattr(os, "memfd_create")

    free = SharedSlots.free

    def spoil(slots, slot):
        freed.append(slot)
        for array in slots.arrays(slot):
            array[:] = 77  # what has been read is not looked at again
        free(slots, slot)

    monkeypatch.setattr(SharedSlots, "free", spoil)
    monkeypatch.setattr(pipeline, "SharedSlots", lambda layout, workers, _: SharedSlots(layout, workers, per_worker))
    assert_same(expected, load(make_config(folder, workers=2), stop=12))
    parts = 12 * 3
    assert (len(freed) >= parts - 1) if per_worker == 50 else (len(freed) < parts)
    assert len(set(freed)) <= 2 * per_worker


@pytest.mark.parametrize("threads", [1, 4])
def test_every_part_finds_a_slot_also_when_the_reader_is_slow(folder, monkeypatch, threads):
    monkeypatch.setattr(pipeline, "ROWS_PER_PART", 4)
    freed, free = [], SharedSlots.free
    monkeypatch.setattr(SharedSlots, "free", lambda slots, slot: (freed.append(slot), free(slots, slot)))
    batches = train_batches(make_config(folder, workers=1, threads=threads), np.arange(BATCH), 0, 20)
    loaded = [next(batches)]
    time.sleep(1)  # as long as a slow step: all that may be loaded ahead is
    loaded += batches
    assert_same(load(make_config(folder), stop=20), [(leaves(batch), stats) for batch, stats in loaded])
    assert len(freed) == 20 * 3 - 1


def test_a_worker_that_dies_is_an_error_not_a_hang(folder):
    batches = train_batches(make_config(folder, workers=1), np.arange(BATCH), 0, 10**6)
    next(batches)
    [worker] = multiprocessing.active_children()
    for notice in (signal.SIGTERM, signal.SIGINT):  # sent to all processes of a job: this one is to act on them
        os.kill(worker.pid, notice)
    worker.join(0.5)
    for _ in range(20):  # more than what it had loaded before
        next(batches)
    worker.kill()
    with pytest.raises(RuntimeError, match=r"A data worker died.*-9.*data\.workers"):
        for _ in range(100):
            next(batches)
