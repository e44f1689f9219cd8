"""Whole runs: killed and resumed, repeated, handed over, evaluated on other devices, stopped by bad numbers."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clips_jax.checkpoint import CheckpointMismatch, Checkpoints
from clips_jax.config import ConfigError
from clips_jax.config.parse import from_config_dict
from clips_jax.data import emoji
from clips_jax.data.tokenizer import train_sentencepiece
from clips_jax.program import make_program
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


def test_tensorboard_holds_each_step_once(uninterrupted):
    workdir, _ = uninterrupted
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [2, 4, 5, 6, 8, 10, 12]


def test_killed_at_random_and_resumed_ends_the_same(uninterrupted, tmp_path, emoji_data_dir):
    workdir, dice = tmp_path / "killed", random.Random(0)
    for kill in range(3):
        # After a step that is further on each time, at a random moment: between saves or inside one.
        wait_for = f"step {(4, 6, 10)[kill]:2d}/12"
        process = subprocess.Popen(command(workdir, emoji_data_dir), stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for line in process.stdout:
            if line.startswith(wait_for):
                break
        time.sleep(dice.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (workdir / "checkpoints" / "11").mkdir()  # what a kill during a save can leave: Orbax would take it for the newest
    done = run(workdir, emoji_data_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from" in done.stdout
    assert "11 is incomplete" in done.stderr
    assert metrics(workdir) == metrics(uninterrupted[0])
    expected, found = (final_params(path, emoji_data_dir) for path in (uninterrupted[0], workdir))
    small.assert_trees_close(found, expected, rtol=0, atol=0)
    assert (workdir / "results.json").read_text() == (uninterrupted[0] / "results.json").read_text()


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


def test_two_processes_give_the_same_run(uninterrupted, tmp_path, emoji_data_dir):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for index in range(2):
        join = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        arguments = command(tmp_path / "run", emoji_data_dir, "--distributed")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(arguments, env=os.environ | join, **pipes))
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert "step 12/12" in outputs[0] and "step 12/12" not in outputs[1]  # one of them speaks
    found, expected = metrics(tmp_path / "run"), metrics(uninterrupted[0])
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for key in (key for key in theirs if key.startswith("loss") or key == "samples_seen"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-3), (key, theirs["step"])


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


def test_evaluate_names_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clips_jax.evaluate", "--workdir", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode != 0 and "is not the workdir of a run" in done.stderr and "Traceback" not in done.stderr


def test_a_non_finite_loss_stops_the_run(tmp_path, emoji_data_dir):
    done = run(
        tmp_path / "run", emoji_data_dir, "--config.optimizer.learning_rate=1e30", "--config.checkpoint.every_steps=1"
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("NonFiniteError") :]
    for part in ("step ", "loss/contrastive/alt", "Last good checkpoint: ", "optimizer.learning_rate"):
        assert part in message
    saved = pathlib.Path(message.split("Last good checkpoint: ")[1].split(". Try")[0])
    assert saved.is_dir() and saved.name == "1"  # the second update overflows the parameters, the first had rate 0


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
    with pytest.raises(CheckpointMismatch, match="image/head/kernel has shape"):
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
