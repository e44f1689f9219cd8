"""Breaks one device's copy of a parameter, on eight fake devices; `test_replicas.py` starts it as a process."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clips_jax.run.replicas import ReplicaMismatch, make_replica_check


def main() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2, 1), ("data", "fsdp", "tensor"))
    specs = {
        "whole": P(),
        "split": P(None, "fsdp"),
        "half": P("fsdp"),
        "n": P(),
    }
    state = {
        "whole": jnp.linspace(0, 1, 24).reshape(4, 6),
        "split": jnp.linspace(0, 1, 24).reshape(4, 6),
        "half": jnp.linspace(0, 1, 6).astype(jnp.bfloat16),
        "n": jnp.int32(7),
    }
    state = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in state.items()}
    check = make_replica_check(
        mesh, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    )
    check(state)
    for name in state:
        for device in (0, 5):
            try:
                check(state | {name: with_one_bit_flipped(state[name], device)})
            except ReplicaMismatch as error:
                copies = 8 if name in ("whole", "n") else 4
                assert str(error).startswith(f"{name}: 1 of {copies} devices"), error
                assert f"disagree: cpu:{device} (process 0)" in str(error), error
            else:
                raise AssertionError(f"{name} on device {device}: not noticed")
    swapped = state["whole"].at[0, 1].set(state["whole"][0, 2]).at[0, 2].set(state["whole"][0, 1])
    check(state | {"whole": jax.device_put(swapped, state["whole"].sharding)})  # the same everywhere is no mismatch
    alone = {"a": jax.device_put(jnp.ones(8), NamedSharding(mesh, P(("data", "fsdp"))))}
    make_replica_check(mesh, shapes(alone))(alone)  # nothing is there twice
    print("all noticed")


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def with_one_bit_flipped(x: jax.Array, device: int) -> jax.Array:
    shards = []
    for shard in x.addressable_shards:
        data = np.array(shard.data)
        if shard.device.id == device:
            words = data.reshape(-1).view(np.uint8)
            words[-1 if words.size > 4 else 0] ^= 1
        shards.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)


if __name__ == "__main__":
    main()
