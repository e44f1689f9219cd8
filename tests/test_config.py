"""Errors of configs name the key and come before anything compiles."""

import subprocess
import sys

import ml_collections
import pytest

from clips_jax.config import ConfigError, to_dict
from clips_jax.config.check import check_mesh
from clips_jax.config.parse import from_config_dict
from configs import clips_b16, clips_l14, demo, my_shards


def changed(key: str, value, arguments: str = "") -> ml_collections.ConfigDict:
    config = demo.get_config(arguments)
    parent, name = config.to_dict(), key.split(".")
    group = parent
    for part in name[:-1]:
        group = group[part]
    group[name[-1]] = value
    return ml_collections.ConfigDict(parent)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimiser", {}, "optimiser: no such key. Did you mean optimizer?"),
        ("optimizer.learning_rat", 1.0, "optimizer.learning_rat: no such key. Did you mean optimizer.learning_rate?"),
        ("batch_size", "128", "batch_size: expected int, got '128'"),
        ("batch_size", True, "batch_size: expected int, got True"),
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate: expected float"),
        ("model.image.image_size", 50, "model.image.image_size: 50 is not a multiple of patch_size 8; use 48 or 56"),
        ("model.image.transformer.heads", 5, "model.image.transformer.heads: 5 does not divide width 96"),
        ("model.dtype", "float16", "model.dtype: 'float16' is not one of 'float32', 'bfloat16'"),
        ("objective.views.alt.length", 81, "objective.views.alt.length: 81 does not fit model.text.length"),
        ("objective.views.alt.budget", 14, "objective.views.alt.budget: 14 tokens and 3 special ones"),
        ("objective.views.alt.mask", "sentence", "objective.views.alt.mask: 'sentence' is not one of"),
        ("objective.views.alt.sources", {"title": 1.0}, "objective.views.alt.sources.title: no such text"),
        ("objective.views.alt.sources", {"alt_text": 0.7}, "objective.views.alt.sources: the probabilities sum to 0.7"),
        (
            "model.captioner.target_length",
            200,
            "model.captioner.target_length: 200 is more than data.texts.recaption.length = 128",
        ),
        ("model.captioner.condition_on", ("image", "title"), "model.captioner.condition_on: 'title' is not one of"),
        ("optimizer.warmup_samples", 10**9, "optimizer.warmup_samples: 1000000000 is not below total_samples"),
        ("total_samples", 100, "total_samples: 100 is less than one batch"),
        ("data.crop_area", (0.5, 1.5), "data.crop_area"),
        ("data.crop_area", (0.5,), "data.crop_area: expected 2 values"),
        ("limits.step", 0.0, "limits.step: 0.0; use 1 or more"),
        ("nonfinite.stop_after", 0, "nonfinite.stop_after: 0; use 1 or more"),
        ("checkpoint.on_full_disk", "wait", "checkpoint.on_full_disk: 'wait' is not one of 'stop', 'continue'"),
        ("checkpoint.keep_best", "retrieval/none/R@1", "checkpoint.keep_best: 'retrieval/none/R@1' is no result of"),
        ("data.texts.recaption.fallback", "title", "data.texts.recaption.fallback: 'title' is not one of"),
    ],
)
def test_errors_name_the_key(key, value, message):
    with pytest.raises(ConfigError) as error:
        from_config_dict(changed(key, value))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("batch_size", "devices", "mesh", "message"),
    [
        (100, 8, {}, "batch_size: 100 does not divide over data x fsdp = 8 devices; use 96 or 104."),
        (128, 8, {"data": 3}, "mesh: {'data': 3"),
        (128, 8, {"data": 2, "fsdp": -1, "tensor": -1}, "mesh: only one axis can be -1"),
        (128, 64, {}, "model.captioner.every: 8 does not divide the 2 examples that a device computes at a time"),
    ],
)
def test_mesh_errors(batch_size, devices, mesh, message):
    config = demo.get_config()
    config.batch_size = batch_size
    config.mesh.update(mesh)
    with pytest.raises(ConfigError) as error:
        check_mesh(from_config_dict(config), devices)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "config",
    [demo.get_config(f"method={method}") for method in ("clips", "clip", "recap_mix")]
    + [demo.get_config("smoke=True"), demo.get_config("captioner=False")]
    + [module.get_config(argument) for module in (clips_b16, clips_l14) for argument in ("", "stage=2", "smoke=True")]
    + [clips_l14.get_config("stage=3,released_format=True")]
    + [my_shards.get_config(argument) for argument in ("", "size=micro", "smoke=True")],
)
def test_configs_are_valid_and_round_trip(config):
    typed = from_config_dict(config)
    assert from_config_dict(to_dict(typed)) == typed


def test_arguments_of_a_config():
    assert (
        "captioner" not in demo.get_config("method=clip").model
        or demo.get_config("method=clip").model.captioner is None
    )
    for text, message in [
        ("method=clop", "method=clop"),
        ("stage=x", "'stage'"),
        ("smoke=2", "smoke=2: expected bool"),
    ]:
        with pytest.raises(ConfigError, match=message):
            demo.get_config(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/demo.py:methd=clip"], "config argument 'methd': no such argument"),
        (["--config=configs/demo.py", "--config.batch_siz=3"], "batch_siz"),
        (["--config=configs/demo.py", "--config.batch_size=many"], "batch_size"),
        (["--config=configs/demo.py", "--config.batch_size=0"], "batch_size: 0; use 1 or more"),
        (["--config=configs/demo.py"], "--workdir is missing"),
        (["--config=configs/demo.py", "--workdir=/nowhere", "--config.mesh.data=3"], "mesh: {'data': 3"),
    ],
)
def test_command_line_errors(flags, message):
    done = subprocess.run([sys.executable, "-m", "clips_jax.main", *flags], capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
