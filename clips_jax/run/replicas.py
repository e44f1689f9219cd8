"""Finds arrays that should be the same on several devices and no longer are: broken memory, a lost update, a bug.

Legend: D devices of the mesh, L leaves.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from clips_jax.checksums import checksum
from clips_jax.optimizer import path_name
from clips_jax.run.stops import RunStopped
from clips_jax.sharding import replicated


class ReplicaMismatch(RunStopped):
    """Devices that must hold the same numbers hold different ones."""


def make_replica_check(mesh: Mesh, state_shapes: Any) -> Callable[[Any], None]:
    """A function that compares all copies of each shard of a state, bit by bit through a 32-bit checksum.

    Every device computes the checksums of what it holds itself; only these (4 bytes per leaf and device) travel. All
    processes call it together; it does nothing where no two devices hold the same.

    Args:
      mesh: of the state.
      state_shapes: ShapeDtypeStructs with their `NamedSharding`.

    Returns:
      `check(state)`, which raises `ReplicaMismatch` naming the first leaf and the devices that differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state_shapes)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state_shapes)
    rows = PartitionSpec(mesh.axis_names)

    def local(state: Any) -> jax.Array:
        return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(state)])[None]

    per_device = jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=rows, check_vma=False)
    checksums = jax.jit(per_device, out_shardings=replicated(mesh))
    devices = list(mesh.devices.flatten())
    groups_by_leaf = [_same_shards(leaf, devices) for _, leaf in leaves]

    def check(state: Any) -> None:
        found_DxL = np.asarray(checksums(state))
        for column, ((path, _), groups) in enumerate(zip(leaves, groups_by_leaf, strict=True)):
            for group in groups:
                values = found_DxL[group, column]
                if (values != values[0]).any():
                    raise ReplicaMismatch(_message(path_name(path), values, [devices[i] for i in group]))

    return check if any(groups_by_leaf) else lambda state: None


def _same_shards(leaf: Any, devices: list[Any]) -> list[list[int]]:
    """Groups of positions in `devices` that hold the same part of a leaf."""
    groups: dict[str, list[int]] = {}
    indices = leaf.sharding.devices_indices_map(leaf.shape)
    for position, device in enumerate(devices):
        groups.setdefault(str(indices[device]), []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def _message(name: str, values: np.ndarray, devices: list[Any]) -> str:
    kinds, counts = np.unique(values, return_counts=True)
    most = counts.max() > len(values) / 2  # else nobody knows which of them is right
    wrong = values != kinds[counts.argmax()] if most else np.ones(len(values), bool)
    different = [f"{d} (process {d.process_index})" for d, bad in zip(devices, wrong, strict=True) if bad]
    return (
        f"{name}: {len(different)} of {len(devices)} devices that should hold the same part of it disagree: "
        f"{', '.join(different)}. A device or its memory may be broken: take it out, and start the same command again "
        "from a checkpoint before this step."
    )
