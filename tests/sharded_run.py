"""Runs a few training steps on a given mesh and saves what came out; `test_sharding.py` starts it as a process.

python -m tests.sharded_run OUT.npz DATA FSDP TENSOR [COORDINATOR PROCESSES INDEX]
"""

import dataclasses
import functools
import sys

import jax
import numpy as np

STEPS = 3


def main() -> None:
    out, sizes, distributed = sys.argv[1], [int(x) for x in sys.argv[2:5]], sys.argv[5:]
    if distributed:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(distributed[0], int(distributed[1]), int(distributed[2]))
    from clips_jax.config import MeshConfig
    from clips_jax.models.clips import Clips
    from clips_jax.optimizer import make_optimizer, path_name
    from clips_jax.sharding import make_mesh, parameter_shardings, process_rows, to_devices
    from clips_jax.train_step import batch_loss, init_params, init_state, train_step
    from tests import small

    config = small.config(batch_size=16, mesh=MeshConfig(*sizes))
    # Key biases have no gradient but rounding errors; with Adam's usual epsilon these alone would move them.
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=1e-3))
    if "sigmoid" in out:
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, contrastive="sigmoid"))
    mesh = make_mesh(config)
    model = Clips(config.model, config.objective, small.SPECIAL.bos)
    key = jax.random.key(0)
    optimizer = make_optimizer(config, jax.eval_shape(lambda k: init_params(config, model, k), key))
    shapes = jax.eval_shape(lambda k: init_state(config, model, optimizer, k), key)
    shardings = parameter_shardings(shapes, mesh)
    state = jax.jit(lambda k: init_state(config, model, optimizer, k), out_shardings=shardings)(key)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = jax.jit(functools.partial(train_step, config, model, small.SPECIAL, optimizer), donate_argnums=0)
    gradient = jax.jit(
        lambda state, batch: jax.grad(batch_loss, argnums=3, has_aux=True)(
            config, model, small.SPECIAL, state.params, batch, state.step
        )[0],
        out_shardings=whole,
    )
    rows = process_rows(mesh, config.batch_size)
    arrays = {}

    def keep(prefix: str, tree) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[f"{prefix}/{path_name(path)}"] = np.asarray(leaf)

    for index in range(STEPS):
        local = jax.tree.map(lambda x: x[rows], small.batch(config, index))
        batch = to_devices(local, mesh, config.batch_size)
        if index == 0:
            keep("gradient", gradient(state, batch))
        state, metrics = step(state, batch)
        keep(f"metrics{index}", jax.device_get(metrics))
    keep("params", jax.jit(lambda params: params, out_shardings=whole)(state.params))
    if jax.process_index() == 0:
        np.savez(out, **arrays)


if __name__ == "__main__":
    main()
