"""Checkpoints: Orbax, asynchronous, in items so that a reader takes only what it needs.

`WORKDIR/checkpoints/STEP/` holds `params`, `optimizer` (step and optimizer state) and `meta` (JSON: the resolved
config, the tokenizer's identity, samples seen, versions, and a checksum of each array).
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from clips_jax.checksums import checksums
from clips_jax.config import CheckpointConfig
from clips_jax.run.stops import FAILED, RESTART, DiskFull, RunStopped, is_disk_full
from clips_jax.train_step import TrainState

ITEMS = ("params", "optimizer", "meta")
_KINDS = {"params": "parameter", "optimizer": "optimizer state"}
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


class DamagedCheckpoint(RunStopped):
    """Files of a checkpoint that was whole are missing, cannot be read, or hold other numbers than were saved."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


# What TensorStore says of files that are not what was written, and of a store that is away.
_DAMAGED = ("DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND", "FAILED_PRECONDITION")
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def _damage(error: Exception) -> str:
    """What is damaged, in the words of this error or of one that it came from; "" if it says nothing of the kind."""
    chain: list[BaseException] = [error]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    if any(word in str(link) for link in chain for word in _AWAY):
        return ""
    for link in chain:
        if isinstance(link, (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, _OtherNumbers)):
            return str(link)
        if any(word in str(link) for word in _DAMAGED):
            return str(link)
    return ""


class _OtherNumbers(Exception):
    """An array whose checksum is not the one that was saved."""


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
    Orbax would take an empty one for the newest checkpoint. The next opening deletes them.

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
        for left in self.directory.glob("incomplete-*"):
            left.rmtree()  # of the start before, which has said so
        for folder in self.directory.iterdir():
            if folder.name.isdigit() and not self._is_complete(folder):
                names = sorted(path.name for path in folder.iterdir())
                if names and not {*names} & {*ITEMS, "_CHECKPOINT_METADATA", "commit_success.txt"}:
                    raise CheckpointMismatch(
                        f"{folder} holds {', '.join(names[:3])}: not a checkpoint of this program. Use another workdir."
                    )
                aside = self.directory / f"incomplete-{folder.name}"
                folder.rename(aside)
                logging.warning(
                    "Checkpoint %s is incomplete: ignored, moved to %s, which the next start deletes.", folder, aside
                )

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

    def checksums(self, state: TrainState) -> dict[str, dict[str, int]]:
        """Of each array, by item and path; compiles at the first call, which a run makes before its first step."""
        return {item: checksums(arrays) for item, arrays in _arrays(state).items()}

    def save(self, state: TrainState, meta: dict[str, Any]) -> bool:
        """Starts saving; returns once the arrays are copied: whether it was started.

        Raises:
          DiskFull: the disk is full and the config says stop. An error of the save before also surfaces here.
        """
        step, arrays = int(state.step), _arrays(state)
        meta = meta | {"versions": versions(), "checksums": self.checksums(state)}
        for _ in range(2):  # the first may find that the save before has failed
            try:
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        params=ocp.args.StandardSave(arrays["params"]),
                        optimizer=ocp.args.StandardSave(arrays["optimizer"]),
                        meta=ocp.args.JsonSave(meta),
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
        """The JSON item of a checkpoint; raises `DamagedCheckpoint`."""
        with self._reading(step, "meta"):
            return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, state: TrainState) -> TrainState:
        """The state of a step, onto the shardings of `state` (ShapeDtypeStructs that carry them).

        Raises:
          CheckpointMismatch: shapes differ. DamagedCheckpoint: see there; where an older checkpoint is whole, this one
            is moved to `damaged-STEP`, so that the next start goes on from the older one.
        """
        params = self.restore_params(step, state.params)
        optimizer = self._restore(step, "optimizer", {"step": state.step, "opt_state": state.opt_state})
        return TrainState(optimizer["step"], params, optimizer["opt_state"])

    def restore_params(self, step: int, params: Any) -> Any:
        """Parameters only, onto the shardings of `params`; raises as `restore` does."""
        return self._restore(step, "params", params)

    def _restore(self, step: int, item: str, target: Any) -> Any:
        saved_sums = self.meta(step).get("checksums", {}).get(item, {})  # checkpoints of before have none
        with self._reading(step, item):
            metadata_of_item = self._manager.item_metadata(step)[item]
            if metadata_of_item is None:
                raise FileNotFoundError(f"{self.path(step) / item / '_METADATA'} is not there")
            saved = metadata_of_item.tree
            saved_leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
            saved_shapes = {name: tuple(leaf.shape) for name, leaf in saved_leaves.items()}
            wanted = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
            if saved_shapes != wanted:
                name = sorted(name for name in saved_shapes | wanted if saved_shapes.get(name) != wanted.get(name))[0]
                raise CheckpointMismatch(
                    f"{self.path(step)}: {_KINDS[item]} {name} has shape "
                    f"{saved_shapes.get(name, 'none: it is not there')}, the config's model wants "
                    f"{wanted.get(name, f'none: it has no such {_KINDS[item]}')}."
                )
            restored = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(target)}))
            restored = restored[item]
            found = checksums(restored)
            for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
                name = _name(path)
                same_bits = leaf.dtype == saved_leaves[name].dtype  # else it was rounded on the way
                if same_bits and found[name] != saved_sums.get(name, found[name]):
                    raise _OtherNumbers(f"the numbers of {name} are not those that were saved (checksum)")
            return restored

    @contextlib.contextmanager
    def _reading(self, step: int, item: str) -> Iterator[None]:
        try:
            yield
        except CheckpointMismatch:
            raise
        except Exception as error:
            if damage := _damage(error):
                raise self._damaged(step, item, damage) from error
            if isinstance(error, (KeyError, TypeError, AttributeError)):  # Orbax, of metadata that lack something
                raise DamagedCheckpoint(
                    f"{self.path(step) / item} cannot be read ({error!r}): damaged, or written by another version of "
                    "Orbax (run.json says which). Without this folder the run goes on from the checkpoint before.",
                    FAILED,
                ) from error
            raise

    def _damaged(self, step: int, item: str, damage: str) -> DamagedCheckpoint:
        folder, older = self.path(step), [saved for saved in self.steps() if saved < step]
        words = " ".join(damage.partition("[tensorstore_spec")[0].split())[:500].rstrip(". ")
        what = f"{_not_json(folder) or folder / item} is damaged: {words}."
        if not older:
            return DamagedCheckpoint(f"{what} There is no older checkpoint: restore these files from a copy.", FAILED)
        if self._config is None:
            return DamagedCheckpoint(f"{what} The one before it is {self.path(older[-1])}.", FAILED)
        aside = self.directory / f"damaged-{step}"
        with contextlib.suppress(OSError):  # another process may have done it
            if aside.exists():
                aside.rmtree()
            folder.rename(aside)
        return DamagedCheckpoint(
            f"{what} It is now {aside}; the same command goes on from {self.path(older[-1])}.", RESTART
        )

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


def _arrays(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "optimizer": {"step": state.step, "opt_state": state.opt_state}}


def _not_json(folder: epath.Path) -> epath.Path | None:
    """The file of a checkpoint that should be JSON and is not."""
    for pattern in ("meta/metadata", "*/_METADATA", "*/_sharding", "*/array_metadatas/*"):
        for path in sorted(folder.glob(pattern)):
            try:
                json.loads(path.read_bytes())
            except (ValueError, OSError):
                return path
    return None


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
