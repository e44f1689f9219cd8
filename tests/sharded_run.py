"""Runs a few training steps on meshes and saves what came out; `test_sharding.py` starts it as a process.

    python -m tests.sharded_run FOLDER LOSS DATAxFSDPxTENSOR… [--join COORDINATOR PROCESSES INDEX]

Writes FOLDER/LOSS-DATAxFSDPxTENSOR.npz for each mesh, which takes the first devices of those that are there.
"""

import argparse
import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np

STEPS = 2


def run(loss: str, sizes: list[int]) -> dict[str, np.ndarray]:
    """Metrics of each step, the first gradient, the last parameters."""
    from clips_jax.config import MeshConfig
    from clips_jax.models.clips import Clips
    from clips_jax.optimizer import make_optimizer, path_name
    from clips_jax.sharding import make_mesh, parameter_shardings, process_rows, to_devices
    from clips_jax.train_step import init_params, init_state, train_step
    from tests import small

    config = small.config(batch_size=16, depth=1, mesh=MeshConfig(*sizes))
    config = small.packed(config, group=2, tokens_per_example=20)
    # Key biases have no gradient but rounding errors; with Adam's usual epsilon these alone would move them.
    optimizer_config = dataclasses.replace(config.optimizer, eps=1e-3, warmup_samples=0)
    objective = dataclasses.replace(config.objective, contrastive=loss)
    parts = 2 if loss == "sigmoid" else 1
    config = dataclasses.replace(config, optimizer=optimizer_config, objective=objective, accumulation_steps=parts)
    mesh = make_mesh(config, jax.devices()[: math.prod(sizes)])
    model = Clips(config.model, config.objective, small.SPECIAL.bos)
    key = jax.random.key(0)
    optimizer = make_optimizer(config, jax.eval_shape(lambda k: init_params(config, model, k), key))
    shapes = jax.eval_shape(lambda k: init_state(config, model, optimizer, k), key)
    shardings = parameter_shardings(shapes, mesh)
    state = jax.jit(lambda k: init_state(config, model, optimizer, k), out_shardings=shardings)(key)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    gather = jax.jit(lambda tree: tree, out_shardings=whole)
    step = jax.jit(functools.partial(train_step, config, model, small.SPECIAL, optimizer, mesh), donate_argnums=0)
    rows = process_rows(mesh, config.batch_size)
    arrays = {}

    def keep(prefix: str, tree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[f"{prefix}/{path_name(path)}"] = np.asarray(leaf)

    for index in range(STEPS):
        local = jax.tree.map(lambda x: x[rows], small.batch(config, index))
        state, metrics = step(state, to_devices(local, mesh, config.batch_size))
        keep(f"metrics{index}", jax.device_get(metrics))
        if index == 0:  # Adam's first moment is 0.1 x the first gradient
            moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if "mu" in str(path)]
            keep("gradient", gather(moments))
    keep("params", gather(state.params))
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("loss")
    parser.add_argument("meshes", nargs="+")
    parser.add_argument("--join", nargs=3)
    arguments = parser.parse_args()
    if arguments.join:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        coordinator, processes, index = arguments.join
        jax.distributed.initialize(coordinator, int(processes), int(index))
    for mesh in arguments.meshes:
        arrays = run(arguments.loss, [int(size) for size in mesh.split("x")])
        if jax.process_index() == 0:
            np.savez(arguments.folder / f"{arguments.loss}-{mesh}{'-joined' if arguments.join else ''}.npz", **arrays)


if __name__ == "__main__":
    main()
