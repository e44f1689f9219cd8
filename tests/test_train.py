"""Whole runs: killed and resumed, repeated, handed over, evaluated on other devices, stopped by bad numbers."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clips_jax.checkpoint import CheckpointMismatch, Checkpoints
from clips_jax.config import ConfigError, to_dict
from clips_jax.config.parse import from_config_dict
from clips_jax.data import emoji
from clips_jax.data.tokenizer import train_sentencepiece
from clips_jax.program import make_program
from clips_jax.run.lock import WorkdirInUse, workdir_lock
from clips_jax.run.record import check_data, data_manifest
from clips_jax.train import train
from configs import clips_l14
from tests import small, tiny_config

STEPS = 12


def command(workdir, data_dir, *flags):
    config = ["--config=tests/tiny_config.py", f"--config.data.data_dir={data_dir}"]
    return [sys.executable, "-m", "clips_jax.main", *config, f"--workdir={workdir}", *flags]


def run(workdir, data_dir, *flags):
    return subprocess.run(command(workdir, data_dir, *flags), capture_output=True, text=True, timeout=900)


def metrics(workdir):
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def final_params(workdir, data_dir):
    config = from_config_dict(tiny_config.get_config())
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=str(data_dir)))
    checkpoints = Checkpoints(str(workdir))
    assert checkpoints.latest_step() == STEPS
    return checkpoints.restore(STEPS, make_program(config).state_shapes)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, emoji_data_dir):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run(workdir, emoji_data_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, done.stdout


def test_a_run_leaves_what_it_promises(uninterrupted):
    workdir, output = uninterrupted
    assert {"config.json", "checkpoints", "metrics.jsonl", "tensorboard", "results.json", "report.html"} <= {
        path.name for path in workdir.iterdir()
    }
    rows = metrics(workdir)
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 12]
    for key in ("loss", "loss/contrastive", "loss/contrastive/alt", "loss/contrastive/recap", "loss/caption"):
        assert all(np.isfinite(row[key]) for row in rows)
    assert "retrieval/unseen_concepts/image_to_text/R@1" in rows[2]
    results = json.loads((workdir / "results.json").read_text())
    assert results["checkpoint_step"] == STEPS and results["samples_seen"] == STEPS * 16
    assert results["results"]["retrieval/unseen_concepts"]["n_images"] > 100
    assert "step 12/12 100%" in output and "images/s" in output and "left" in output
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert steps == [9, 12]
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    stalls = {row["step"]: row["time/save_stall_seconds"] for row in logged}  # saves came after steps 3, 6, 9 and 12
    assert all((stalls[step] > 0) == (step in (4, 8, 10)) for step in stalls)
    assert re.search(r"4 saves; training waited \d+\.\d s for them", output)


def test_the_workdir_says_what_the_run_was(uninterrupted):
    start = json.loads((uninterrupted[0] / "run.json").read_text())["starts"][0]
    assert start["from_step"] == 0 and start["processes"] == 1 and start["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    assert start["versions"]["jax"] == jax.__version__ and start["devices"]["platform"] == "cpu"
    assert (
        start["tokenizer"]["sha256"]
        and len(start["data"]["sha256"]) == 64
        and start["data"]["data_sets"] == {"data": "emoji"}
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    assert commit.returncode != 0 or start["source"]["commit"] == commit.stdout.strip()


def test_tensorboard_holds_each_step_once(uninterrupted):
    workdir, _ = uninterrupted
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [2, 4, 5, 6, 8, 10, 12]


def test_a_finished_run_started_again_changes_nothing(uninterrupted, emoji_data_dir):
    workdir, _ = uninterrupted
    before = metrics(workdir), (workdir / "results.json").read_text(), (workdir / "report.html").read_text()
    assert run(workdir, emoji_data_dir).returncode == 0
    assert before == (metrics(workdir), (workdir / "results.json").read_text(), (workdir / "report.html").read_text())


def test_evaluate_on_other_devices_gives_the_same_results(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=3"}
    arguments = ["--workdir", str(workdir), "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "clips_jax.evaluate", *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (json.loads((path / "results.json").read_text()) for path in (tmp_path, workdir))
    assert ours["checkpoint_step"] == theirs["checkpoint_step"] and ours["samples_seen"] == theirs["samples_seen"]
    assert_results_close(ours, theirs)
    assert "unseen_concepts" in done.stdout


def assert_results_close(ours, theirs):
    """The caption loss to rounding; ranks may swap where scores nearly tie, for a picture or two of 161."""
    assert ours["results"].keys() == theirs["results"].keys()
    for name, numbers in theirs["results"].items():
        for key, value in numbers.items():
            ranked = "R@" in key or key in ("top1", "top5", "per_class") or "median" in key
            slack = {"abs": 1.5} if ranked else {"rel": 1e-4}
            assert ours["results"][name][key] == pytest.approx(value, **slack), (name, key)


def test_the_full_recipe_runs_at_a_tiny_size(tmp_path, emoji_data_dir):
    """In bfloat16, rematerialised, with the learnable captioner: nothing else here runs these."""
    config = clips_l14.get_config("smoke=True,stage=3,released_format=True")
    config.data.data_dir = emoji_data_dir
    config.total_samples = 3 * config.batch_size
    config.optimizer.warmup_samples = config.batch_size
    config.log_every_steps = 1
    config.evaluation = tiny_config.get_config().evaluation
    train(from_config_dict(config), str(tmp_path))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "report.html").exists()


def test_another_config_is_refused_by_key(uninterrupted, tiny):
    config = dataclasses.replace(tiny, seed=1, batch_size=32)
    with pytest.raises(CheckpointMismatch, match=r"another config:\n  batch_size: 16 -> 32\n  seed: 0 -> 1"):
        train(config, str(uninterrupted[0]))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("retrieval", {"text": "title"}, "evaluation.retrieval.unseen_concepts.text: 'title' is not a feature"),
        ("classification", {"label": "kind"}, "evaluation.classification.unseen_concepts_group.label: 'kind'"),
        ("retrieval", {"split": "test"}, "split 'test' of data set emoji"),
    ],
)
def test_evaluators_without_data_are_refused_before_training(kind, change, message, tiny, tmp_path):
    parts = {name: dataclasses.replace(part, **change) for name, part in getattr(tiny.evaluation, kind).items()}
    config = dataclasses.replace(tiny, evaluation=dataclasses.replace(tiny.evaluation, **{kind: parts}))
    with pytest.raises(ConfigError, match=message):
        train(config, str(tmp_path))


def test_a_config_change_can_be_told_to_go_on(uninterrupted, tiny, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    config = dataclasses.replace(tiny, seed=1, log_every_steps=1)
    train(config, str(tmp_path / "run"), allow_config_change=True)
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert starts[-1]["config_changes"] == {"log_every_steps": [2, 1], "seed": [0, 1]}
    assert starts[-1]["from_step"] == STEPS


def test_another_config_is_refused_before_the_first_checkpoint(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(dataclasses.replace(tiny, seed=3))))
    with pytest.raises(CheckpointMismatch, match=r"config.json belongs to a run with another config:\n  seed: 3 -> 0"):
        train(tiny, str(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_a_second_run_in_a_workdir_is_refused(tiny, tmp_path):
    with workdir_lock(str(tmp_path), print), pytest.raises(WorkdirInUse):
        train(tiny, str(tmp_path))


def test_data_that_changed_are_refused(tiny):
    here = data_manifest(tiny)
    check_data(here, dict(here), "step 3", allow=False)
    with pytest.raises(CheckpointMismatch, match="the data emoji have changed since"):
        check_data(here | {"sha256": "0" * 64}, here, "step 3", allow=False)
    check_data(here | {"sha256": "0" * 64}, here, "step 3", allow=True)


def test_the_best_checkpoint_is_kept(tiny, tmp_path):
    """By a result of each evaluation, also across a restart."""
    metric = "caption_loss/unseen_concepts/loss"  # lower is better, and it falls
    every = dataclasses.replace(tiny.evaluation, every_steps=2, retrieval={}, classification={})
    checkpoint = dataclasses.replace(tiny.checkpoint, every_steps=100, keep=1, keep_best=metric)
    config = dataclasses.replace(tiny, evaluation=every, checkpoint=checkpoint, log_every_steps=100)
    train(config, str(tmp_path))
    found = {row["step"]: row[metric] for row in metrics(tmp_path) if metric in row and row["step"] < STEPS}
    checkpoints = Checkpoints(str(tmp_path), checkpoint)
    checkpoints.values.update(found)
    assert checkpoints.best_step() == min(found, key=lambda step: (found[step], step))
    assert checkpoints.steps() == sorted({checkpoints.best_step(), STEPS})
    checkpoints.close()


def test_evaluate_names_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clips_jax.evaluate", "--workdir", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode != 0 and f"{tmp_path} is neither the workdir of a run" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_non_finite_loss_stops_the_run(tmp_path, emoji_data_dir):
    done = run(
        tmp_path / "run", emoji_data_dir, "--config.optimizer.learning_rate=1e30", "--config.checkpoint.every_steps=1"
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("NonFiniteError") :]
    for part in ("step ", "loss/contrastive/alt", "Last good checkpoint: ", "optimizer.learning_rate"):
        assert part in message
    saved = pathlib.Path(message.split("Last good checkpoint: ")[1].split(". Try")[0])
    # The first update has rate 0, the second is the last finite one; what it made shows in the loss of the third.
    assert saved.is_dir() and saved.name == "1"
    assert message.startswith("NonFiniteError: step 5: ") and "3 steps in a row" in message


@pytest.fixture
def tiny(emoji_data_dir):
    config = from_config_dict(tiny_config.get_config())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=emoji_data_dir))


def test_another_tokenizer_is_refused_on_resume_and_on_hand_over(uninterrupted, tiny, tmp_path):
    path = tmp_path / "other.model"
    texts = emoji.texts(emoji.build(tiny.data.data_dir))
    train_sentencepiece((text for text, _ in zip(texts, range(2000), strict=False)), path, 600)
    config = dataclasses.replace(tiny, tokenizer=dataclasses.replace(tiny.tokenizer, path=str(path)))
    with pytest.raises(CheckpointMismatch, match="trained with tokenizer sha256"):
        train(config, str(uninterrupted[0]))
    with pytest.raises(CheckpointMismatch, match="trained with tokenizer sha256"):
        train(dataclasses.replace(config, init_from=str(uninterrupted[0])), str(tmp_path / "new"))


def test_another_model_is_refused_by_parameter_name(uninterrupted, tiny, tmp_path):
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, joint_dim=48))
    with pytest.raises(CheckpointMismatch, match="image/head/kernel: .* wanted"):
        train(dataclasses.replace(config, init_from=str(uninterrupted[0])), str(tmp_path))


def test_a_stage_takes_parameters_only(uninterrupted, tiny, tmp_path):
    config = dataclasses.replace(tiny, init_from=str(uninterrupted[0]), total_samples=32)
    optimizer = dataclasses.replace(tiny.optimizer, learning_rate=0.0)
    image = dataclasses.replace(tiny.model.image, image_size=48)  # fixed positions follow the resolution
    config = dataclasses.replace(config, optimizer=optimizer, model=dataclasses.replace(tiny.model, image=image))
    train(config, str(tmp_path / "stage2"))
    checkpoints = Checkpoints(str(tmp_path / "stage2"))
    expected = final_params(uninterrupted[0], tiny.data.data_dir).params
    small.assert_trees_close(
        checkpoints.restore_params(2, make_program(config).state_shapes.params), expected, rtol=0, atol=0
    )
