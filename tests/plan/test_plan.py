"""`python -m clips_jax.plan` as a user runs it, for topologies that are not here."""

import json
import pathlib
import subprocess
import sys

import pytest

from clips_jax.config import ConfigError
from clips_jax.config.parse import from_config_dict
from clips_jax.plan.chips import parse_topology
from clips_jax.plan.compiled import LIBTPU
from clips_jax.plan.sweep import variants
from clips_jax.sharding import make_mesh
from configs import clips_l14

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = ("--config", str(ROOT / "tests" / "tiny_config.py"))


def plan(folder, *flags, code="import runpy; runpy.run_module('clips_jax.plan', run_name='__main__')"):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_a_plan_for_four_tpus(tmp_path):
    done = plan(tmp_path, *CONFIG, "--topology=v5e:2x2", "--config.mesh.fsdp=2", "--config.batch_size=32", "--json")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())  # nothing is written
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert result["parameter_bytes_per_chip"] < 4 * result["parameters"] < 2.2 * result["parameter_bytes_per_chip"]
    state = result["parameter_bytes_per_chip"] + result["optimizer_bytes_per_chip"] + result["batch_bytes_per_chip"]
    assert state <= result["argument_bytes_per_chip"] <= result["peak_bytes_per_chip"]
    assert result["peak_bytes_per_chip"] < result["hbm_bytes_per_chip"]
    assert result["fits"]
    assert 0.99 < result["flops_over_minimum"] < 1.3
    assert result["flops_over_minimum"] == pytest.approx(result["flops_per_chip"] / result["minimum_flops_per_chip"])
    # Shards of a matrix meet at the chip's own size: within the padding of such a small model.
    assert 0.8 < result["executed_flops_per_chip"] / result["flops_per_chip"] < 1.5
    assert all(row["bytes"] >= row["wire_bytes"] / 2 > 0 for row in result["collectives"].values())
    assert result["compile_seconds"] > 0
    estimated = result["estimated"]
    assert estimated["chip_hours"] == pytest.approx(6 * estimated["step_seconds"] * 4 / 3600)
    for line in ("peak", "HBM: fits", "the layout's minimum", "~ step time", "~ chip-hours", "assumed:"):
        assert line in done.stdout


def test_without_libtpu_the_one_command_is_named(tmp_path):
    hidden = "sys.modules['libtpu'] = None; import runpy; runpy.run_module('clips_jax.plan', run_name='__main__')"
    done = plan(tmp_path, *CONFIG, "--topology=v5e:2x2", code=hidden)
    assert done.returncode not in (0, 3)
    assert LIBTPU in done.stderr
    assert "Traceback" not in done.stderr
    assert LIBTPU.split()[-1] in (ROOT / "tests" / "requirements.txt").read_text()


def test_a_sweep_over_gpus(tmp_path):
    flags = ("--sweep=gpu:h100:8x2,gpu:a100:8x4", "--batch_per_chip=8", "--config.total_samples=512", "--json")
    done = plan(tmp_path, *CONFIG, *flags)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]
    first, second = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    assert (first["batch_size"], second["batch_size"]) == (128, 256)
    assert first["flops_per_chip"] == pytest.approx(second["flops_per_chip"], rel=0.01)
    assert done.stdout.count("| tiny_config |") == 2
    assert (tmp_path / "plan.svg").read_text().count("gpu:") == 2


def test_what_does_not_fit_is_said_and_stages_are_added_up(tmp_path):
    config = ("--config", str(ROOT / "configs" / "clips_s16.py"), "--config.mesh.fsdp=1")
    done = plan(tmp_path, *config, "--topology=gpu:h100:1x1", "--config.batch_size=32768")
    assert done.returncode == 3, done.stderr
    assert "67.055 GiB HBM: DOES NOT FIT, " in done.stdout
    for stage in ("stage 1 (112 px, batch 32,768", "stage 2 (224 px, batch 16,384"):
        assert stage in done.stdout
    assert "all stages: " in done.stdout


@pytest.mark.parametrize("text", ["v9:2x2", "v5e", "v5e:2x2x2", "v5e:0x4", "gpu:h100", "gpu:tpu:8x8", "h100:8x8", ":"])
def test_an_unknown_topology_lists_what_is_known(text):
    with pytest.raises(ConfigError, match=r"Known: v4 .*gpu:NAME \(a100, h100"):
        parse_topology(text)


def test_a_slice_that_cannot_be_rented_is_an_error():
    with pytest.raises(ConfigError, match="1024 chips; the largest v5e slice has 256"):
        parse_topology("v5e:32x32")
    with pytest.raises(ConfigError, match="libtpu refuses it"):
        parse_topology("v5e:3x5").devices()


@pytest.mark.parametrize(("name", "chips"), [("v4:2x2x4", 16), ("v5p:2x2x4", 16), ("v6e:4x4", 16), ("v5e:16x16", 256)])
def test_a_device_is_a_chip(name, chips):
    assert len(parse_topology(name).devices()) == chips == parse_topology(name).chips


def test_a_mesh_axis_may_take_a_part_of_an_axis_of_the_torus():
    topology = parse_topology("v5p:8x8x4")  # no axes of it multiply to the 16 of the full-size configs
    config = from_config_dict(clips_l14.get_config())
    mesh = make_mesh(config, topology.devices())
    assert dict(mesh.shape) == {"data": 16, "fsdp": 16, "tensor": 1}
    assert {device.id for device in mesh.devices.flat} == {device.id for device in topology.devices()}


def test_a_sweep_over_batch_sizes_needs_a_topology():
    config = from_config_dict(clips_l14.get_config())
    found = variants(config, parse_topology("v5e:4x4"), ["1024", "2048"], 0)
    assert [one.batch_size for one, _ in found] == [1024, 2048]
    for topology, value, message in [
        (None, "64", "needs --topology"),
        (None, "many", "neither a batch size nor"),
        (parse_topology("v5e:4x4"), "99999999999", "total_samples: .* less than one batch"),
    ]:
        with pytest.raises(ConfigError, match=message):
            variants(config, topology, [value], 0)
