"""The mesh, and one ordered list of rules from parameter path to partition spec.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits heads and hidden units.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from clips_jax.config import Config, ConfigError, LimitsConfig
from clips_jax.config.check import check_mesh
from clips_jax.optimizer import match_one, path_name

P = PartitionSpec
BATCH = P(("data", "fsdp"))

# Block parameters carry the scan's layer axis in front.
RULES = (
    (r".*/blocks/(cross_)?attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor", None)),
    (r".*/blocks/(cross_)?attention/(query|key|value)/bias$", P(None, "tensor", None)),
    (r".*/blocks/(cross_)?attention/out/kernel$", P(None, "tensor", None, "fsdp")),
    (r".*/blocks/mlp/up/kernel$", P(None, "fsdp", "tensor")),
    (r".*/blocks/mlp/up/bias$", P(None, "tensor")),
    (r".*/blocks/mlp/down/kernel$", P(None, "tensor", "fsdp")),
    (r".*/blocks/((cross_)?attention/out|mlp/down)/bias$", P()),
    (r".*/norm\w*/(scale|bias)$", P()),
    (r"image/patches/kernel$", P(None, "fsdp")),
    (r"(image|text)/head/kernel$", P("fsdp", None)),
    (r"captioner/project_\w+/kernel$", P(None, "fsdp")),
    (r"captioner/head$", P("fsdp", "tensor")),
    (r".*/tokens/embedding$", P("tensor", "fsdp")),
    (r".*/(positions|queries|class_token)$", P()),
    (r"logit_(scale|bias)$", P()),
)
# Scalars of a state that belong to no parameter: the step, and the updates that the optimizer has counted.
COUNTERS = ("step", "count")


def join_processes(limits: LimitsConfig = LimitsConfig()) -> None:  # noqa: B008
    """Joins the run's other processes; must come before anything touches a device.

    On TPU pods, SLURM and GKE JAX finds them; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
    say where they are. JAX's own time limits abort a process without a word to this program: they come after `limits`.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # read on CPU only
    timeouts: dict[str, Any] = {
        "initialization_timeout": int(limits.join + 60),
        "heartbeat_timeout_seconds": int(2 * limits.silence + 10),
        "shutdown_timeout_seconds": int(limits.evaluation),
    }
    if "JAX_NUM_PROCESSES" in os.environ:
        processes, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        jax.distributed.initialize(num_processes=processes, process_id=index, **timeouts)
    else:
        jax.distributed.initialize(**timeouts)


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config over all devices (or these); raises `ConfigError` if they or the batch do not fit."""
    devices = devices if devices is not None else jax.devices()
    sizes = check_mesh(config, len(devices))
    # An axis takes whole axes of the torus; where none multiply to its size, such as 16 on v5p:8x8x4, parts of them.
    laid_out = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(laid_out, tuple(sizes))


def parameter_shardings(shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of `NamedSharding` like `shapes` (parameters, or a state that holds them anywhere in its paths).

    Raises:
      ConfigError: a path matches no rule or several, a rule has more axes than the parameter, or an axis does not
        divide a dimension.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = parameter_path(path_name(path))
        if leaf.ndim == 0 and name in COUNTERS:
            return NamedSharding(mesh, P())
        spec = match_one(name, RULES, "sharding")
        if len(spec) > leaf.ndim:
            raise ConfigError(
                f"sharding of parameter {name}: its rule {spec} has more axes than its shape {leaf.shape}."
            )
        for axis, (size, names) in enumerate(zip(leaf.shape, spec, strict=False)):
            parts = int(np.prod([mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ())]))
            if size % parts:
                raise ConfigError(
                    f"mesh: {name} has shape {leaf.shape}; axis {axis} of size {size} does not divide over "
                    f"{names} = {parts}. Choose another mesh.{names} or another width."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def parameter_path(name: str) -> str:
    """The part of an optimizer-state path that names the parameter; moments have their parameter's shape."""
    parts = name.split("/")
    roots = [i for i, part in enumerate(parts) if part in ("image", "text", "captioner")]
    return "/".join(parts[roots[0] :]) if roots else parts[-1]


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Rows of the batch over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Whole on every device: metrics, and what evaluators read."""
    return NamedSharding(mesh, P())


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Rows of the global batch that this process's devices hold, increasing: int64 (rows,)."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices if index is not None]))


def to_devices(tree: Any, mesh: Mesh, batch_size: int) -> Any:
    """This process's rows (`process_rows`) of every array -> global arrays of `batch_size` rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:])), tree)
