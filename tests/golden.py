"""What the full-size configs resolve to, as text under tests/golden/: a changed hyper-parameter shows up as a diff.

    python -m tests.golden      # writes the files anew; look at the diff before committing it

A file lists what decides about the model and its training at stage 1, what later stages change, and the parameters.
"""

import importlib
import math
import pathlib
from typing import Any

import jax
from jax.sharding import AbstractMesh

from clips_jax.config import Config, to_dict
from clips_jax.config.parse import from_config_dict
from clips_jax.data.tokenizer import SpecialTokens
from clips_jax.optimizer import path_name
from clips_jax.program import make_step_program

FOLDER = pathlib.Path(__file__).parent / "golden"
NAMES = ("clips_s16", "clips_b16", "clips_l14", "clips_so400m14", "clips_h14")
SETTINGS = ("batch_size", "total_samples", "data.texts.", "model.", "objective.", "optimizer.", "mesh.")
SPECIAL = SpecialTokens(pad=0, bos=1, eos=2, cls=3)


def parameter_shapes(config: Config, chips: int = 256) -> Any:
    """Parameters as ShapeDtypeStructs with their shardings over a mesh of so many chips."""
    sizes = config.mesh.resolve(chips)
    return make_step_program(config, AbstractMesh(tuple(sizes.values()), tuple(sizes)), SPECIAL).state_shapes.params


def count(params: Any) -> int:
    """Numbers in a tree of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def text(name: str) -> str:
    """The golden text of a config file."""
    module = importlib.import_module(f"configs.{name}")
    stages = [from_config_dict(module.get_config(f"stage={n + 1}")) for n in range(len(module.STAGES))]
    first = _flat(to_dict(stages[0]))
    lines = [f"{key} = {value}" for key, value in first.items() if key.startswith(SETTINGS)]
    for number, stage in enumerate(stages[1:], 2):
        lines.append(f"\nstage {number}")
        lines += [f"{key} = {value}" for key, value in _flat(to_dict(stage)).items() if first.get(key) != value]
    params = parameter_shapes(stages[0])
    lines.append(f"\n{count(params):,} parameters, with their sharding over 256 chips")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
        lines.append(f"{path_name(path):50} {'x'.join(map(str, leaf.shape)) or 'scalar':18} {spec}".rstrip())
    return "\n".join(lines) + "\n"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{path}.{key}" if path else key)
    return flat


if __name__ == "__main__":
    for name in NAMES:
        (FOLDER / f"{name}.txt").write_text(text(name))
