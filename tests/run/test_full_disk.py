"""A disk that is full: said, nothing whole is lost, and the run does what the config says.

`ulimit -f` stands in for the disk: writes beyond it fail in the same calls, with an error of the same kind.
"""

import contextlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax.checkpoint import Checkpoints
from clips_jax.config import CheckpointConfig
from clips_jax.metrics import MetricWriter, read_metrics
from clips_jax.run.stops import DiskFull, is_disk_full
from clips_jax.train_step import TrainState

SIZE = 300_000


@contextlib.contextmanager
def files_up_to(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def state(step: int) -> TrainState:
    noise = jax.random.normal(jax.random.key(step), (SIZE,))  # does not compress
    return TrainState(jnp.int32(step), {"a": noise}, {"m": jnp.ones(3)})


def test_saves_that_fail_leave_the_old_checkpoint_and_the_next_one_works(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(every_steps=1, keep=1, on_full_disk="continue"))
    checkpoints.save(state(1), {})
    checkpoints.wait()
    with files_up_to(100_000):
        for step in (2, 3):
            checkpoints.save(state(step), {})
            checkpoints.wait()
            checkpoints.check()
            assert checkpoints.failed_saves == step - 1
            assert checkpoints.steps() == [1] == [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert checkpoints.save(state(4), {})
    checkpoints.wait()
    assert checkpoints.steps() == [4]
    shape = jax.ShapeDtypeStruct((SIZE,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    np.testing.assert_array_equal(checkpoints.restore_params(4, {"a": shape})["a"], state(4).params["a"])
    checkpoints.close()


def test_the_run_is_stopped_by_default_at_the_next_step(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(every_steps=1))
    checkpoints.save(state(1), {})
    checkpoints.wait()
    with files_up_to(100_000):
        checkpoints.save(state(2), {})
        with pytest.raises(DiskFull, match=r"the newest whole checkpoint is .*/checkpoints/1\. Make room"):
            checkpoints.wait()
    checkpoints.check()  # said once
    assert checkpoints.latest_step() == 1
    checkpoints.close()


def test_metrics_stay_in_memory_until_there_is_room(tmp_path):
    writer = MetricWriter(str(tmp_path), 0)
    for step in range(1, 4):
        writer.write(step, {"loss": 1.0})
        writer.flush()
    whole = (tmp_path / "metrics.jsonl").stat().st_size
    with files_up_to(whole + 10):  # the next row is cut in the middle
        for step in range(4, 7):
            writer.write(step, {"loss": 1.0})
            writer.flush()
        assert [row["step"] for row in read_metrics(str(tmp_path))] == [1, 2, 3]
    writer.write(7, {"loss": 1.0})
    writer.close()
    assert [row["step"] for row in read_metrics(str(tmp_path))] == list(range(1, 8))
    assert "\n\n" not in (tmp_path / "metrics.jsonl").read_text()


def test_metrics_stop_the_run_where_it_is_to_stop(tmp_path):
    writer = MetricWriter(str(tmp_path), 0, stop_on_full_disk=True)
    writer.write(1, {"loss": 1.0})
    with files_up_to(10), pytest.raises(DiskFull, match="metrics.jsonl: the disk is full"):
        writer.flush()
    writer.close()


def test_the_words_of_other_libraries_are_understood():
    assert is_disk_full(OSError(28, "No space left on device"))
    try:
        try:
            raise ValueError('RESOURCE_EXHAUSTED: Error writing "a/b": No space left on device [OS error 28: ENOSPC]')
        except ValueError as cause:
            raise RuntimeError("save failed") from cause
    except RuntimeError as error:
        assert is_disk_full(error)
    assert not is_disk_full(ValueError("RESOURCE_EXHAUSTED: out of device memory"))
