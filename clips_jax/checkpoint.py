"""Checkpoints: Orbax, asynchronous, in items so that a reader takes only what it needs.

`WORKDIR/checkpoints/STEP/` holds `params`, `optimizer` (step and optimizer state) and `meta` (JSON: the resolved
config, the tokenizer's identity, samples seen, versions).
"""

from importlib import metadata
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from clips_jax.config import CheckpointConfig
from clips_jax.train_step import TrainState

ITEMS = ("params", "optimizer", "meta")
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "sentencepiece",
    "numpy",
)


class CheckpointMismatch(ValueError):
    """A checkpoint that does not belong to this config, model or tokenizer."""


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run computes."""
    return {name: metadata.version(name) for name in PACKAGES}


class Checkpoints:
    """The checkpoints of one workdir.

    Opening it for writing moves step folders that are not complete out of the way, to `incomplete-STEP`, and says so:
    Orbax would take an empty one for the newest checkpoint.
    """

    def __init__(self, workdir: str, config: CheckpointConfig | None = None):
        """`config` None opens for reading only."""
        self.directory = epath.Path(workdir).absolute() / "checkpoints"
        if config is None:
            if not self.directory.exists():
                raise FileNotFoundError(f"{self.directory} does not exist: {workdir} is not the workdir of a run.")
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        else:
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._set_incomplete_aside()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                keep_period=config.keep_every_steps or None,
                enable_async_checkpointing=True,
                create=False,
                cleanup_tmp_directories=True,
            )
            if jax.process_count() > 1:
                ocp.multihost.sync_global_processes("checkpoints:open")
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.directory, item_handlers=handlers, options=options)

    def _is_complete(self, folder: epath.Path) -> bool:
        return (folder / "_CHECKPOINT_METADATA").exists() and all((folder / item).exists() for item in ITEMS)

    def _set_incomplete_aside(self) -> None:
        for folder in self.directory.iterdir():
            if folder.name.isdigit() and not self._is_complete(folder):
                aside = self.directory / f"incomplete-{folder.name}"
                if aside.exists():
                    aside.rmtree()
                folder.rename(aside)
                logging.warning("Checkpoint %s is incomplete: ignored, moved to %s.", folder, aside)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, increasing."""
        return sorted(step for step in self._manager.all_steps() if self._is_complete(self.path(step)))

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return max(self.steps(), default=None)

    def path(self, step: int) -> epath.Path:
        """Where the checkpoint of a step is."""
        return self.directory / str(step)

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving; returns once the arrays are copied. An error of the save before surfaces here."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                meta=ocp.args.JsonSave(meta | {"versions": versions()}),
            ),
            force=True,  # the loop decides when; Orbax's own first-save rule stays out of it
        )

    def check(self) -> None:
        """Raises the error of a background save, if there was one."""
        self._manager.check_for_errors()

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON item of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, state: TrainState) -> TrainState:
        """The state of a step, onto the shardings of `state` (ShapeDtypeStructs that carry them)."""
        params = self.restore_params(step, state.params)
        target = {"step": state.step, "opt_state": state.opt_state}
        args = ocp.args.Composite(optimizer=ocp.args.StandardRestore(target))
        optimizer = self._manager.restore(step, args=args)["optimizer"]
        return TrainState(optimizer["step"], params, optimizer["opt_state"])

    def restore_params(self, step: int, params: Any) -> Any:
        """Parameters only, onto the shardings of `params`; raises `CheckpointMismatch` if their shapes differ."""
        saved = self._manager.item_metadata(step)["params"].tree
        saved_shapes = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
        wanted = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        if saved_shapes != wanted:
            name = sorted(name for name in saved_shapes | wanted if saved_shapes.get(name) != wanted.get(name))[0]
            raise CheckpointMismatch(
                f"{self.path(step)}: parameter {name} has shape {saved_shapes.get(name, 'none: it is not there')}, "
                f"the config's model wants {wanted.get(name, 'none: it has no such parameter')}."
            )
        return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(params)))["params"]

    def wait(self) -> None:
        """Waits for the last save; raises its error."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the last save; raises its error."""
        self.wait()
        self._manager.close()


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_tokenizer(saved: dict[str, Any], current: dict[str, Any], path: Any) -> None:
    """Raises `CheckpointMismatch` if a checkpoint was trained with another tokenizer."""
    for key in sorted(saved | current):
        if saved.get(key) != current.get(key):
            raise CheckpointMismatch(
                f"{path}: trained with tokenizer {key} = {saved.get(key)!r}, but here it is {current.get(key)!r}. "
                "Set tokenizer.path (or data.data_dir) to the one it was trained with, or start a new workdir."
            )


# Keys that do not decide what is computed, so a resumed run may change them.
FREE_KEYS = (
    "mesh.",
    "data.data_dir",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "tokenizer.path",  # what lies there is checked by its hash
    "log_every_steps",
    "checkpoint.",
    "evaluation.",
    "init_from",
)


def check_config(saved: dict[str, Any], current: dict[str, Any], path: Any) -> None:
    """Raises `CheckpointMismatch`, listing the keys, if a checkpoint belongs to a run with another config."""
    old, new = _flat(saved), _flat(current)
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS)]
    if changed:
        lines = "".join(f"\n  {key}: {old.get(key, 'not there')} -> {new.get(key, 'not there')}" for key in changed)
        raise CheckpointMismatch(
            f"{path} belongs to a run with another config:{lines}\n"
            "Use a new workdir; init_from takes over the parameters."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}{name}.").items()}
