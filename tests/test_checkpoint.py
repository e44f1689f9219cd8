"""Which checkpoints are kept, and which count."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax.checkpoint import CheckpointMismatch, Checkpoints, DamagedCheckpoint
from clips_jax.checksums import checksums
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
    Checkpoints(str(tmp_path), config).close()
    assert not (tmp_path / "checkpoints" / "incomplete-2").exists()  # they do not pile up


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    theirs = tmp_path / "checkpoints" / "7" / "model.pt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(CheckpointMismatch, match=r"checkpoints/7 holds model.pt: not a checkpoint of this program"):
        Checkpoints(str(tmp_path), CheckpointConfig(every_steps=1))
    assert theirs.read_text() == "theirs"


def large(step: int) -> TrainState:
    """Arrays that are stored in files of their own, and do not compress."""
    noise = jax.random.normal(jax.random.key(step), (64, 64))
    return TrainState(jnp.int32(step), {"a": noise, "b": {"c": noise.astype(jnp.bfloat16)}}, {"m": -noise})


def shapes():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), large(0))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(str(workdir), CheckpointConfig(every_steps=1))
    for step in (1, 2):
        checkpoints.save(large(step), {"counters": {}})
    checkpoints.close()
    return workdir


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("which", "change", "said"),
    [
        ("params/ocdbt.process_0/d/*", flip, r"2/params is damaged: the numbers of (a|b/c) are not those that were"),
        ("optimizer/ocdbt.process_0/d/*", flip, r"2/optimizer is damaged: the numbers of opt_state/m are not those"),
        ("optimizer/ocdbt.process_0/d/*", lambda content: content[:999], r"2/optimizer is damaged: .*OUT_OF_RANGE"),
        ("params/manifest.ocdbt", flip, r"2/params is damaged: DATA_LOSS"),
        ("params/_METADATA", lambda content: content[:-9], r"2/params/_METADATA is damaged"),
        ("meta/metadata", lambda content: b"", r"2/meta/metadata is damaged"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_next(two_checkpoints, tmp_path, which, change, said):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    found = max((tmp_path / "run/checkpoints/2").glob(which), key=lambda path: path.stat().st_size)
    found.write_bytes(change(found.read_bytes()))

    reader = Checkpoints(str(tmp_path / "run"))  # exports and evaluations touch nothing
    with pytest.raises(DamagedCheckpoint, match=said + r"[^$]*The one before it is .*checkpoints/1\.$") as error:
        reader.restore(2, shapes())
    assert error.value.exit_code == 1 and reader.steps() == [1, 2]

    checkpoints = Checkpoints(str(tmp_path / "run"), CheckpointConfig(every_steps=1))
    with pytest.raises(DamagedCheckpoint, match=r"now .*/damaged-2; the same command goes on from .*/1\.$") as error:
        checkpoints.restore(2, shapes())
    assert error.value.exit_code == 75 and (tmp_path / "run/checkpoints/damaged-2").is_dir()
    again = Checkpoints(str(tmp_path / "run"), CheckpointConfig(every_steps=1))
    assert again.latest_step() == 1
    assert checksums(again.restore(1, shapes())) == checksums(large(1))


def test_damage_of_the_only_checkpoint_moves_nothing(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/1")
    (tmp_path / "run/checkpoints/2/params/manifest.ocdbt").unlink()
    checkpoints = Checkpoints(str(tmp_path / "run"), CheckpointConfig(every_steps=1))
    with pytest.raises(DamagedCheckpoint, match="There is no older checkpoint: restore these files") as error:
        checkpoints.restore(2, shapes())
    assert error.value.exit_code == 1 and checkpoints.latest_step() == 2


def test_another_optimizer_and_a_store_that_is_away_are_no_damage(two_checkpoints, tmp_path, monkeypatch):
    shutil.copytree(two_checkpoints, tmp_path / "run")
    checkpoints = Checkpoints(str(tmp_path / "run"), CheckpointConfig(every_steps=1))
    other = shapes().replace(opt_state={"momentum": shapes().opt_state["m"]})
    with pytest.raises(CheckpointMismatch, match="optimizer state opt_state/m has shape .* no such optimizer state"):
        checkpoints.restore(2, other)

    def away(*_, **__):
        raise ValueError("UNAVAILABLE: connect failed; NOT_FOUND: no route")

    monkeypatch.setattr(checkpoints._manager, "restore", away)
    with pytest.raises(ValueError, match="UNAVAILABLE"):
        checkpoints.restore(2, shapes())
    assert checkpoints.steps() == [1, 2]


def test_a_rounded_copy_is_no_damage(two_checkpoints):
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), shapes().params)
    restored = Checkpoints(str(two_checkpoints)).restore_params(2, half)
    np.testing.assert_array_equal(restored["a"], large(2).params["a"].astype(jnp.bfloat16))
