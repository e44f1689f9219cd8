"""One device = 8 fake devices, in several layouts = 2 processes of 4: losses, gradients, parameters."""

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
from clips_jax.config_parse import from_config_dict
from clips_jax.models.clips import Clips
from clips_jax.optimizer import make_optimizer, match_one, parameter_groups
from clips_jax.train_step import init_params, init_state
from configs import clips_l14
from tests import small


def start(out, sizes, devices, distributed=()):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    command = [sys.executable, "-m", "tests.sharded_run", str(out), *map(str, sizes), *map(str, distributed)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(out, *processes):
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return dict(np.load(out))


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def single(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    out = folder / f"{request.param}.npz"
    return request.param, folder, result(out, start(out, (1, 1, 1), 1))


def assert_same(single, other):
    assert single.keys() == other.keys()
    for name, array in single.items():
        np.testing.assert_allclose(other[name], array, err_msg=name, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_eight_devices_equal_one(single, sizes):
    loss, folder, expected = single
    if loss == "sigmoid" and sizes != (2, 2, 2):
        return  # the loss differs, the layouts do not: one of them is enough
    out = folder / f"{loss}-{'x'.join(map(str, sizes))}.npz"
    assert_same(expected, result(out, start(out, sizes, 8)))


def test_two_processes_equal_one(single):
    loss, folder, expected = single
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    out = folder / f"{loss}-2x4.npz"
    processes = [start(out, (2, 4, 1), 4, (coordinator, 2, index)) for index in range(2)]
    assert_same(expected, result(out, *processes))


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


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ConfigError, match="weight decay of parameter image/tilt: no rule matches"):
        parameter_groups({"image": {"tilt": np.zeros(3)}})
    with pytest.raises(ConfigError, match="optimizer.freeze: 'tower' matches no parameter"):
        parameter_groups({"image": {"head": {"kernel": np.zeros((3, 3))}}}, freeze=("tower",))


def test_colliding_rules_are_an_error():
    with pytest.raises(ConfigError, match="several rules match"):
        match_one("image/head/kernel", ((r".*kernel$", 1), (r"image/.*", 2)), "test")


def test_a_shape_that_does_not_divide_names_the_parameter():
    shapes = state_shapes(small.config()).params
    mesh = make_fake_mesh(tensor=3)
    with pytest.raises(
        ConfigError, match=r"blocks/attention/key/bias has shape \(2, 4, 8\); axis 1 of size 4 does not divide"
    ):
        sharding.parameter_shardings(shapes, mesh)


def make_fake_mesh(**sizes: int) -> AbstractMesh:
    """Axis sizes without devices, which is all that shape checks read."""
    names = ("data", "fsdp", "tensor")
    return AbstractMesh(tuple(sizes.get(name, 1) for name in names), names)
