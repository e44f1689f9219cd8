"""Checkpoints: Orbax, asynchronous, in items so that a reader takes only what it needs.

`WORKDIR/checkpoints/STEP/` holds `params`, `optimizer` (step and optimizer state) and `meta` (JSON: the resolved
config, the tokenizer's identity, samples seen, versions).
"""

import contextlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from clips_jax.config import CheckpointConfig
from clips_jax.run.stops import DiskFull, is_disk_full
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


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, without its own question for preemptions.

    The processes agree on a place in one sequence of questions, and the loop asks them (`run/preemption.py`); this one
    would ask again at each save, from a background thread.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Keep:
    """Which checkpoints stay: the newest n, every kth, the best, and the newest one of all.

    Saves off the schedule (preemptions, evaluations) do not count among the newest n, so that what is kept does not
    depend on how often a run was stopped.
    """

    def __init__(self, config: CheckpointConfig, values: Mapping[int, float]):
        self._config, self._values = config, values

    def best(self, steps: Sequence[int]) -> int | None:
        """The step with the best value."""
        known = [step for step in steps if step in self._values]
        sign = -1 if lower_is_better(self._config.keep_best) else 1
        return max(known, key=lambda step: (sign * self._values[step], -step), default=None)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Orbax's `PreservationPolicy`; `checkpoints` have a `step` and come oldest first."""
        steps, config = [checkpoint.step for checkpoint in checkpoints], self._config
        kept = {step for step in steps if config.keep_every_steps and step % config.keep_every_steps == 0}
        kept.update([step for step in steps if step % config.every_steps == 0][-config.keep :])
        kept.update(steps[-1:])
        kept.add(self.best(steps) or 0)
        return [step in kept for step in steps]


def lower_is_better(metric: str) -> bool:
    """Losses, perplexities and ranks; recalls and accuracies are better when higher."""
    return any(word in metric.rpartition("/")[2] for word in ("loss", "perplexity", "rank"))


class Checkpoints:
    """The checkpoints of one workdir.

    Opening it for writing moves step folders that are not complete out of the way, to `incomplete-STEP`, and says so:
    Orbax would take an empty one for the newest checkpoint.

    Attributes:
      values: of `keep_best`, by step; the caller keeps it up to date, and fills it in when a run goes on.
      failed_saves: saves that found the disk full, where the config lets a run go on.
    """

    def __init__(self, workdir: str, config: CheckpointConfig | None = None, timeout: float = 1800.0):
        """`config` None opens for reading only; `timeout`: seconds that a save may take until it is an error."""
        self.directory = epath.Path(workdir).absolute() / "checkpoints"
        self.failed_saves = 0
        self.values: dict[int, float] = {}
        self._config, self._keep = config, None
        if config is None:
            if not self.directory.exists():
                raise FileNotFoundError(f"{self.directory} does not exist: {workdir} is not the workdir of a run.")
            options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        else:
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._set_incomplete_aside()
            self._keep = _Keep(config, self.values)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self._keep,
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(timeout_secs=int(timeout)),
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
        self._manager = _Manager(self.directory, item_handlers=handlers, options=options)

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

    def best_step(self) -> int | None:
        """The complete checkpoint with the best value of `keep_best`."""
        return self._keep.best(self.steps()) if self._keep else None

    def save(self, state: TrainState, meta: dict[str, Any]) -> bool:
        """Starts saving; returns once the arrays are copied: whether it was started.

        Raises:
          DiskFull: the disk is full and the config says stop. An error of the save before also surfaces here.
        """
        step = int(state.step)
        for _ in range(2):  # the first may find that the save before has failed
            try:
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardSave(state.params),
                        optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                        meta=ocp.args.JsonSave(meta | {"versions": versions()}),
                    ),
                    force=True,  # the loop decides when; Orbax's own first-save rule stays out of it
                )
                return True
            except Exception as error:
                self._failed(error)
        return False

    def check(self) -> None:
        """Raises the error of a background save, if there was one."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """A save that failed: raises, or, where the disk is full and the config says so, goes on without it."""
        if not is_disk_full(error):
            raise error
        self._forget_failed_save()
        newest = self.latest_step()
        left = f"the newest whole checkpoint is {self.path(newest)}" if newest is not None else "there is none yet"
        if self._config is None or self._config.on_full_disk == "stop":
            raise DiskFull(
                f"{self.directory}: the disk is full, a checkpoint could not be saved; {left}. Make room and start the "
                "same command again (checkpoint.keep, checkpoint.keep_every_steps say what is kept; "
                "checkpoint.on_full_disk='continue' trains on)."
            ) from error
        self.failed_saves += 1
        logging.error("%s: the disk is full, a checkpoint was not saved; training goes on, %s.", self.directory, left)

    def _forget_failed_save(self) -> None:
        """Orbax reports a failure from two threads; takes both, and what the save has left on the disk."""
        for finish in (self._manager.wait_until_finished, self._manager.check_for_errors):
            with contextlib.suppress(Exception):
                finish()
        if jax.process_index() == 0:
            for folder in self.directory.iterdir():
                if ".orbax-checkpoint-tmp" in folder.name:
                    with contextlib.suppress(OSError):
                        folder.rmtree()
        self._manager.reload()

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`; all processes call it. A kill in between leaves whole ones only."""
        for later in [saved for saved in self._manager.all_steps() if saved > step]:
            if jax.process_index() == 0:
                (self.path(later) / "_CHECKPOINT_METADATA").unlink(missing_ok=True)  # from here on it does not count
            self._manager.delete(later)

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
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._failed(error)

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
