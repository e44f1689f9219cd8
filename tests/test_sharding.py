"""One device = 8 fake devices, in several layouts = 2 processes of 4: losses, gradients, parameters."""

import importlib
import math
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from clips_jax import sharding
from clips_jax.config import ConfigError
from clips_jax.config.parse import from_config_dict
from clips_jax.models.clips import Clips
from clips_jax.optimizer import make_optimizer, match_one, parameter_groups, path_name
from clips_jax.train_step import init_params, init_state
from configs import clips_l14
from tests import golden, small


def start(folder, devices, loss, *arguments):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    command = [sys.executable, "-m", "tests.sharded_run", str(folder), loss, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every layout's arrays by file name; one process runs all layouts of 8 devices."""
    folder = tmp_path_factory.mktemp("sharded")
    finish(start(folder, 8, "softmax", "1x1x1", "8x1x1", "1x8x1", "2x2x2"))
    finish(start(folder, 8, "sigmoid", "1x1x1", "2x2x2"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    finish(*(start(folder, 4, "softmax", "2x4x1", "--join", coordinator, "2", str(index)) for index in range(2)))
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.parametrize(
    "name", ["softmax-8x1x1", "softmax-1x8x1", "softmax-2x2x2", "softmax-2x4x1-joined", "sigmoid-2x2x2"]
)
def test_many_devices_and_processes_equal_one(results, name):
    single, other = results[f"{name.split('-')[0]}-1x1x1"], results[name]
    assert single.keys() == other.keys()
    for key, array in single.items():
        np.testing.assert_allclose(other[key], array, err_msg=key, rtol=2e-4, atol=2e-5)
    moved = [key for key in single if key.startswith("gradient") and abs(single[key]).max() > 1e-6]
    assert len(moved) > 30  # there is something to compare


def state_shapes(config):
    model = Clips(config.model, config.objective, bos=2)
    key = jax.random.key(0)
    optimizer = make_optimizer(config, jax.eval_shape(lambda k: init_params(config, model, k), key))
    return jax.eval_shape(lambda k: init_state(config, model, optimizer, k), key)


@pytest.mark.parametrize("released_format", [False, True])
def test_every_parameter_of_the_full_size_matches_one_rule(released_format):
    config = from_config_dict(clips_l14.get_config(f"released_format={released_format}"))
    shapes = state_shapes(config)
    groups = parameter_groups(shapes.params)
    assert set(jax.tree.leaves(groups)) == {"decay", "no_decay"}
    shardings = sharding.parameter_shardings(shapes, make_fake_mesh(data=2, fsdp=16, tensor=2))
    split = [s.spec for s in jax.tree.leaves(shardings) if "fsdp" in jax.tree.leaves(tuple(s.spec))]
    assert len(split) > 40  # parameters and both moments


@pytest.mark.parametrize("name", golden.NAMES)
def test_nothing_large_is_whole_on_a_chip(name):
    config = from_config_dict(importlib.import_module(f"configs.{name}").get_config())
    for path, leaf in jax.tree_util.tree_leaves_with_path(golden.parameter_shapes(config)):
        held = math.prod(leaf.sharding.shard_shape(leaf.shape))
        assert leaf.size < 500_000 or held * config.mesh.fsdp == leaf.size, path_name(path)


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_text_of_full_size_configs(name):
    expected = (golden.FOLDER / f"{name}.txt").read_text()
    assert golden.text(name) == expected, "a full-size config changed: if you mean it, run python -m tests.golden"


@pytest.mark.parametrize(
    # Both towers of the released weights; the fixed positions (257 rows at 224 px) are no parameter here.
    ("name", "released"),
    [("clips_l14", 414_247_425 - 257 * 1024), ("clips_h14", 968_284_161 - 257 * 1280)],
)
def test_released_sizes(name, released):
    module = importlib.import_module(f"configs.{name}")
    config = from_config_dict(module.get_config("stage=2,released_format=True"))
    params = dict(golden.parameter_shapes(config))
    params.pop("captioner")
    assert golden.count(params) == released


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ConfigError, match="weight decay of parameter image/tilt: no rule matches"):
        parameter_groups({"image": {"tilt": np.zeros(3)}})
    with pytest.raises(ConfigError, match="optimizer.freeze: 'tower' matches no parameter"):
        parameter_groups({"image": {"head": {"kernel": np.zeros((3, 3))}}}, freeze=("tower",))


def test_a_parameter_without_a_rule_is_an_error_also_if_it_is_a_scalar():
    mesh = make_fake_mesh()
    for name, shape in (("tilt", (3,)), ("tilt", ())):
        with pytest.raises(ConfigError, match="sharding of parameter image/tilt: no rule matches"):
            sharding.parameter_shardings({"image": {name: jax.ShapeDtypeStruct(shape, np.float32)}}, mesh)


def test_a_rule_with_more_axes_than_the_parameter_is_an_error():
    shapes = {"image": {"head": {"kernel": jax.ShapeDtypeStruct((8,), np.float32)}}}
    with pytest.raises(ConfigError, match=r"image/head/kernel: .* has more axes than its shape \(8,\)"):
        sharding.parameter_shardings(shapes, make_fake_mesh())


def test_colliding_rules_are_an_error():
    with pytest.raises(ConfigError, match="several rules match"):
        match_one("image/head/kernel", ((r".*kernel$", 1), (r"image/.*", 2)), "test")


def test_a_shape_that_does_not_divide_names_the_parameter():
    shapes = state_shapes(small.config()).params
    mesh = make_fake_mesh(tensor=3)
    with pytest.raises(ConfigError, match=r"captioner/head has shape \(32, 64\); axis 1 of size 64 does not divide"):
        sharding.parameter_shardings(shapes, mesh)


def make_fake_mesh(**sizes: int) -> AbstractMesh:
    """Axis sizes without devices, which is all that shape checks read."""
    names = ("data", "fsdp", "tensor")
    return AbstractMesh(tuple(sizes.get(name, 1) for name in names), names)
