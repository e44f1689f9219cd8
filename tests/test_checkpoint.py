"""Which checkpoints are kept, and which count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax.checkpoint import Checkpoints
from clips_jax.config import CheckpointConfig
from clips_jax.train_step import TrainState


def save(checkpoints: Checkpoints, steps) -> None:
    for step in steps:
        checkpoints.save(TrainState(jnp.int32(step), {"a": jnp.full(3, step)}, {"m": jnp.ones(3)}), {"counters": {}})
    checkpoints.wait()


def test_the_newest_and_every_kth_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), CheckpointConfig(every_steps=1, keep=2, keep_every_steps=4))
    save(checkpoints, range(1, 12))
    assert checkpoints.steps() == [4, 8, 10, 11]
    checkpoints.close()


@pytest.mark.parametrize("rest", [(), ("params",), ("params", "optimizer", "meta")])
def test_an_incomplete_step_is_set_aside_and_can_be_saved_again(tmp_path, rest):
    config = CheckpointConfig(every_steps=1)
    first = Checkpoints(str(tmp_path), config)
    save(first, [1])
    first.close()
    for name in rest or ("",):
        (tmp_path / "checkpoints" / "2" / name).mkdir(parents=True)
    again = Checkpoints(str(tmp_path), config)
    assert again.latest_step() == 1 and (tmp_path / "checkpoints" / "incomplete-2").is_dir()
    save(again, [2])
    shape = jax.ShapeDtypeStruct((3,), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    np.testing.assert_array_equal(again.restore_params(2, {"a": shape})["a"], [2, 2, 2])
    again.close()
