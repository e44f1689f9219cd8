"""Parameters handed from one stage to the next: from a run's workdir or an imported model, resized where the next
stage's pictures, patches or texts have another size. Everything that is not allowed by name must fit exactly.

Legend: W tower width, L text positions, G patches per side, P patch size, C = 3 channels.
"""

import contextlib
import dataclasses
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from clips_jax.checkpoint import CheckpointMismatch, Checkpoints, check_tokenizer
from clips_jax.config import Config, ConfigError, ImageTowerConfig, InitConfig, ModelConfig
from clips_jax.config.parse import from_config_dict
from clips_jax.data.open_tokenizer import open_tokenizer
from clips_jax.interop.state_dict import WrongWeights
from clips_jax.models.clips import Clips
from clips_jax.models.image_tower import sincos_positions
from clips_jax.pretrained import is_workdir, read_folder
from clips_jax.program import Program
from clips_jax.sharding import parameter_shardings, replicated
from clips_jax.train_step import init_params

TEXT_POSITIONS, IMAGE_POSITIONS, PATCHES = "text/positions", "image/positions", "image/patches/kernel"
TOKENS = "text/tokens/embedding"
# Long-CLIP (Zhang et al. 2024): the first positions are well trained by short texts and stay as they are.
KEPT_POSITIONS = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """Where parameters come from.

    Attributes:
      path: the workdir's step, or the folder.
      params: arrays by path, on the devices (a workdir's) or on the host.
      model: their architecture.
      tokenizer: identity of the tokenizer they were trained with.
    """

    path: str
    params: dict[str, Any]
    model: ModelConfig
    tokenizer: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Handover:
    """What a stage starts from.

    Attributes:
      arrays: by path; those that are not here stay as they are initialised.
      notes: what was resized, left fresh or dropped, a line each.
    """

    arrays: dict[str, Any]
    notes: list[str]

    def onto(self, fresh: Any) -> Any:
        """Freshly initialised parameters, replaced by what was handed over, each array where the fresh one lies."""
        leaves = dict(traverse_util.flatten_dict(fresh, sep="/"))
        for path, array in self.arrays.items():
            target: Any = leaves[path]
            if path == TEXT_POSITIONS and array.shape != target.shape:  # "keep": the new positions are fresh ones
                array = jnp.concatenate([array[:-1], target[len(array) - 1 : -1], array[-1:]])
            leaves[path] = jax.device_put(array, target.sharding)
        return traverse_util.unflatten_dict(leaves, sep="/")


def prepare(program: Program) -> Handover:
    """Reads `init_from` and fits it to the program's model; nothing compiles but resizing.

    Raises:
      FileNotFoundError: no model there.
      CheckpointMismatch: it does not fit; lists every path, and the setting that would allow it.
      ConfigError: a pattern of `init` that matches nothing.
    """
    config = program.config
    try:
        source = read_source(config, program.mesh)
    except WrongWeights as error:
        message = str(error).replace("--positions learned", "model.image.positions='learned'")  # no option of training
        raise CheckpointMismatch(f"init_from: {message}") from error
    shapes: dict[str, Any] = traverse_util.flatten_dict(program.state_shapes.params, sep="/")
    if not any(re.fullmatch(pattern, TOKENS) for pattern in config.init.allow_missing):
        check_tokenizer(source.tokenizer, program.tokenizer.identity(), source.path)
    return fit(source, config.model, shapes, config.init)


def read_source(config: Config, mesh: Mesh) -> Source:
    """The parameters of `config.init_from`, a workdir's spread as the mesh wants them."""
    path = config.init_from
    if not is_workdir(path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"init_from: there is no {path}; a training workdir or a model folder is wanted.")
        found, params, _ = read_folder(path, "learned" if config.model.image.positions == "learned" else "")
        return Source(path, _flat(params), found.model, open_tokenizer(path).identity())
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise FileNotFoundError(f"init_from: no complete checkpoint in {checkpoints.directory}.")
        meta = checkpoints.meta(step)
        trained = from_config_dict(meta["config"])
        model = Clips(trained.model, trained.objective, bos=0)
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
        shapes = jax.eval_shape(lambda k: init_params(trained, model, k), key)
        shardings = parameter_shardings(shapes, mesh)
        wanted = jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
        )
        params = checkpoints.restore_params(step, wanted)
        tokenizer = {k: v for k, v in meta["tokenizer"].items() if not k.startswith("length/")}
        return Source(str(checkpoints.path(step)), _flat(params), trained.model, tokenizer)


def fit(source: Source, target: ModelConfig, shapes: dict[str, Any], settings: InitConfig) -> Handover:
    """Every parameter of the target from the source's, resized as `settings` allow.

    Args:
      shapes: the target's parameters by path: anything with a `shape`.

    Raises:
      CheckpointMismatch, ConfigError: see `prepare`.
    """
    params, notes = dict(source.params), []
    _resize(params, notes, source.model, target, shapes, settings)
    problems, arrays, fresh, dropped = [], {}, [], []
    missing, unused = _Patterns(settings.allow_missing), _Patterns(settings.allow_unused)
    for path, wanted in shapes.items():
        found = params.pop(path, None)
        extends = path == TEXT_POSITIONS and settings.text_positions == "keep"
        if found is not None and (found.shape == wanted.shape or (extends and found.shape[1:] == wanted.shape[1:])):
            arrays[path] = found
        elif missing.match(path):
            fresh.append(path if found is None else f"{path} (there {found.shape})")
        else:
            problems.append(f"{path}: {found.shape if found is not None else 'not there'}, wanted {wanted.shape}")
    for path in params:
        if unused.match(path):
            dropped.append(path)
        else:
            problems.append(f"{path}: {params[path].shape} is there and not wanted")
    if problems:
        raise CheckpointMismatch(
            f"init_from: {source.path} does not fit this config's model."
            + "".join(f"\n  {problem}" for problem in sorted(problems))
            + "\nWhat may start fresh (also with another shape) is named by init.allow_missing, what may be dropped by "
            "init.allow_unused, regular expressions on whole paths; init.text_positions, init.image_positions and "
            "init.patches say how sizes change."
        )
    for name, patterns in (("allow_missing", missing), ("allow_unused", unused)):
        if patterns.unused:
            raise ConfigError(
                f"init.{name}: {sorted(patterns.unused)[0]!r} matches no such parameter of this hand-over."
            )
    notes += [f"{what}: {_listed(paths)}" for what, paths in (("fresh", fresh), ("dropped", dropped)) if paths]
    return Handover(arrays, notes)


def _listed(paths: list[str], most: int = 5) -> str:
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


class _Patterns:
    """Regular expressions, and which of them have matched nothing yet."""

    def __init__(self, patterns: tuple[str, ...]):
        self._patterns, self.unused = patterns, set(patterns)

    def match(self, path: str) -> bool:
        matching = {pattern for pattern in self._patterns if re.fullmatch(pattern, path)}
        self.unused -= matching
        return bool(matching)


def _resize(
    params: dict[str, Any],
    notes: list[str],
    source: ModelConfig,
    target: ModelConfig,
    shapes: dict[str, Any],
    settings: InitConfig,
) -> None:
    """Replaces what has another size in `params`, where the settings say how; notes what it did."""
    old, new = params.get(PATCHES), source.image.patch_size != target.image.patch_size
    if old is not None and new and settings.patches == "resize" and PATCHES in shapes:
        params[PATCHES] = resize_patches(_whole(old), source.image.patch_size, target.image.patch_size)
        notes.append(f"{PATCHES}: {source.image.patch_size} px resized to {target.image.patch_size} px")
    wanted = shapes.get(IMAGE_POSITIONS)
    if wanted is not None and settings.image_positions == "interpolate":
        table = params.get(IMAGE_POSITIONS)
        if table is None or table.shape != wanted.shape:
            params[IMAGE_POSITIONS] = image_positions(table, source.image, target.image)
            notes.append(f"{IMAGE_POSITIONS}: {'sin-cos' if table is None else table.shape} to {wanted.shape}")
    table, wanted = params.get(TEXT_POSITIONS), shapes.get(TEXT_POSITIONS)
    if table is not None and wanted is not None and table.shape != wanted.shape:
        if settings.text_positions == "stretch":
            params[TEXT_POSITIONS] = stretch_positions(_whole(table), wanted.shape[0])
        elif settings.text_positions == "keep" and wanted.shape[0] < table.shape[0]:
            params[TEXT_POSITIONS] = np.concatenate([_whole(table)[: wanted.shape[0] - 1], _whole(table)[-1:]])
        if settings.text_positions != "strict":
            notes.append(
                f"{TEXT_POSITIONS}: {table.shape[0]} to {wanted.shape[0]} positions, {settings.text_positions}"
            )


def stretch_positions(table_LxW: np.ndarray, length: int) -> np.ndarray:
    """Long-CLIP's stretch: the first 20 rows and the last (CLS) stay, those between are interpolated linearly.

    Args:
      table_LxW: trained positions, CLS last.
      length: rows wanted; at least 22.

    Returns:
      float32 (length, W). Rows past the last trained one go on in its direction, as in Long-CLIP's code.

    Raises:
      ConfigError: too few rows to stretch.
    """
    middle, wanted = table_LxW[KEPT_POSITIONS:-1], length - 1 - KEPT_POSITIONS
    if len(middle) < 2 or wanted < 1:
        raise ConfigError(
            f"init.text_positions: 'stretch' keeps {KEPT_POSITIONS} positions and CLS's; {len(table_LxW)} rows cannot "
            f"become {length}."
        )
    place = np.arange(wanted) * len(middle) / wanted
    below = np.minimum(place.astype(int), len(middle) - 2)
    share = (place - below)[:, None]
    between = (1 - share) * middle[below] + share * middle[below + 1]
    return np.concatenate([table_LxW[:KEPT_POSITIONS], between, table_LxW[-1:]]).astype(np.float32)


def image_positions(table: Any, source: ImageTowerConfig, target: ImageTowerConfig) -> np.ndarray:
    """Learned positions for another grid: bicubic, antialiased; a sin-cos model's (`table` None) are computed.

    Returns:
      float32 (class token + G * G, W).
    """
    width, grid = target.transformer.width, target.image_size // target.patch_size
    if table is None:
        class_1xW, patches = np.zeros((1, width), np.float32), sincos_positions(grid, width)
    else:
        table = _whole(table)
        old = source.image_size // source.patch_size
        class_1xW = table[:1] if source.class_token else np.zeros((1, width), np.float32)
        square_GxGxW = jnp.asarray(table[int(source.class_token) :].reshape(old, old, width))
        resized = jax.image.resize(
            square_GxGxW, (grid, grid, width), "bicubic", antialias=True, precision=jax.lax.Precision.HIGHEST
        )
        patches = np.asarray(resized).reshape(-1, width)
    return np.concatenate([class_1xW, patches]) if target.class_token else patches


def resize_patches(kernel: np.ndarray, old: int, new: int) -> np.ndarray:
    """A patch kernel for another patch size by pseudo-inverse (FlexiViT, Beyer et al. 2023, section 3.4).

    A larger new kernel answers to an enlarged patch as the old one did to the patch itself; for a smaller one that is
    so in the least-squares sense.

    Args:
      kernel: float32 (old * old * C, W).

    Returns:
      float32 (new * new * C, W).
    """
    basis = jnp.eye(old * old).reshape(old * old, old, old)
    resized = jax.image.resize(basis, (old * old, new, new), "bilinear", precision=jax.lax.Precision.HIGHEST)
    matrix = np.asarray(resized, np.float64).reshape(
        old * old, new * new
    )  # a patch (row) times this is the resized one
    flat = np.asarray(kernel, np.float64).reshape(old * old, -1)
    return (np.linalg.pinv(matrix) @ flat).reshape(new * new * 3, -1).astype(np.float32)


def _whole(array: Any) -> np.ndarray:
    """A small array on the host, also if its parts lie on several processes' devices."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        where: Any = array.sharding
        array = jax.jit(lambda x: x, out_shardings=replicated(where.mesh))(array)
    return np.asarray(array)


def _flat(params: Any) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(params, sep="/"))
