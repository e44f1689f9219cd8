"""Files of a workdir that a crash or a bad disk has damaged do not keep a run from going on."""

import json
import os

import pytest

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import to_dict
from clips_jax.metrics import MetricWriter, read_metrics
from clips_jax.run import record
from clips_jax.run.record import check_started
from tests import small


def test_a_config_that_cannot_be_read_is_left_out_of_account(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(record.logging, "warning", lambda text, *values: said.append(text % values))
    config, path = small.config(), tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config) | {"seed": 7}))
    with pytest.raises(CheckpointMismatch, match="seed: 7 -> 0"):
        check_started(str(tmp_path), config, allow=False)
    for content in (b'{"seed": 7', b"", b"\0" * 50, b"\xff\xfe", b"[1]"):
        path.write_bytes(content)
        check_started(str(tmp_path), config, allow=False)
        assert f"{path} cannot be read" in said.pop()


def test_lines_of_metrics_that_are_not_whole_are_left_out(tmp_path):
    lines = [
        b'{"step": 1, "loss": 2.0}',
        b"\0\0\0",
        b"\xff\xfe",
        b"[1]",
        b'{"loss": 1}',
        b'{"step": 2}',
        b'{"step": 3, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_metrics(str(tmp_path)) == [{"step": 1, "loss": 2.0}, {"step": 2}]


def test_rows_before_a_save_outlive_a_power_failure(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    writer = MetricWriter(str(tmp_path), 0)
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
        writer.flush()
    before = len(synced)
    writer.flush(durable=True)  # no new row: those that are there
    assert len(synced) == before + 1 and synced[-1] == (tmp_path / "metrics.jsonl").stat().st_size
    writer.close()
