"""When numbers go wrong: counting, stopping, and going back."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from clips_jax import loop as loop_module
from clips_jax.config import CheckpointConfig, EvaluationConfig, NonFiniteConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.run.nonfinite import NonFiniteCounter, NonFiniteError, Rewind
from clips_jax.run.preemption import Preemption
from clips_jax.run.stops import Preempted
from clips_jax.train import train
from clips_jax.train_step import Step
from configs import demo
from tests.faults.processes import metrics, newest_arrays

GOOD, BAD = {"loss": 1.0, "gradient_norm": 1.0}, {"loss": float("nan"), "gradient_norm": 1.0}


def test_single_bad_steps_pass_and_a_row_of_them_stops():
    counter = NonFiniteCounter(NonFiniteConfig(stop_after=2), {})
    for step, metrics_ in enumerate([GOOD, BAD, GOOD, BAD], 1):
        counter.see(step, metrics_, metrics_ is GOOD)
    resumed = NonFiniteCounter(NonFiniteConfig(stop_after=2), counter.counters)  # a restart in between changes nothing
    with pytest.raises(NonFiniteError, match="step 5: .* not finite, 2 steps in a row"):
        resumed.see(5, BAD, False)
    assert resumed.counters["nonfinite_steps"] == 3 and resumed.proven == 2


def test_parameters_are_proven_by_the_step_after():
    counter = NonFiniteCounter(NonFiniteConfig(stop_after=1, rewinds=1), {})
    with pytest.raises(Rewind) as rewind:
        counter.see(9, GOOD, False)  # loss and gradient are fine: the update itself overflowed
    assert (rewind.value.step, rewind.value.proven) == (9, 8)
    with pytest.raises(NonFiniteError):
        counter.see(10, BAD, False)  # its one rewind is used up
    assert counter.proven == 8


@pytest.fixture
def bad_data(monkeypatch, emoji_data_dir):
    """A config whose batches at positions 6, 7 and 8 give a loss that is not a number; and the positions read."""
    positions = []

    def poisoned(config, rows, start, stop):
        for position, (batch, stats) in enumerate(original(config, rows, start, stop), start):
            positions.append(position)
            if position in (6, 7, 8):
                batch = batch.replace(images=np.zeros_like(batch.images))
            yield batch, stats

    def loss(self, params, batch, keys_B):
        value, parts = original_loss(self, params, batch, keys_B)
        value = jnp.where(jnp.all(batch.images == 0), jnp.nan, value)
        return value, parts | {"loss": value}

    original, original_loss = loop_module.train_batches, Step.loss
    monkeypatch.setattr(loop_module, "train_batches", poisoned)
    monkeypatch.setattr(Step, "loss", loss)
    config = from_config_dict(demo.get_config("smoke=True,method=clip"))  # the least to compile
    return positions, dataclasses.replace(
        config,
        batch_size=8,
        total_samples=8 * 12,
        data=dataclasses.replace(config.data, data_dir=emoji_data_dir),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(every_steps=3, keep=4),
        log_every_steps=1,
        nonfinite=NonFiniteConfig(stop_after=3, rewinds=1),
    )


def test_a_rewind_leaves_the_bad_data_out_and_survives_a_preemption(bad_data, tmp_path, monkeypatch):
    positions, config = bad_data
    train(config, str(tmp_path / "run"))
    # Steps 7, 8, 9 are bad; 5 is the last proven step, 3 the newest checkpoint before it; data goes on at 9.
    read = positions[: positions.index(9)], positions[len(positions) - 9 :]
    assert read == (list(range(9)), list(range(9, 18)))
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["nonfinite_steps"] == 3 and all(np.isfinite(row["loss"]) for row in rows)

    reached = Preemption.reached
    monkeypatch.setattr(Preemption, "reached", lambda self: reached(self) or self._calls == 8)  # among the bad steps
    with pytest.raises(Preempted, match="after step 8"):
        train(config, str(tmp_path / "stopped"))
    monkeypatch.setattr(Preemption, "reached", reached)
    train(config, str(tmp_path / "stopped"))
    assert metrics(tmp_path / "stopped") == rows
    ours, theirs = newest_arrays(tmp_path / "stopped"), newest_arrays(tmp_path / "run")
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs) and ours.keys() == theirs.keys()


def test_without_rewinds_it_stops_with_the_last_good_checkpoint(bad_data, tmp_path):
    _, config = bad_data
    config = dataclasses.replace(config, nonfinite=NonFiniteConfig(stop_after=3))
    with pytest.raises(NonFiniteError, match="step 9: .*checkpoints/3. Try a lower optimizer.learning_rate"):
        train(config, str(tmp_path))
