"""A whole run: plan, join, shards, duplicates, manifest. Shards that are up to date are not made again."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from clips_jax.data.prepare import dataset, duplicates, join, shard, storage
from clips_jax.data.prepare.lost_workers import no_endless_wait
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.progress import progress
from clips_jax.data.prepare.rows import Task

DIRECT = "DirectRunner"
_CHECKS_AT_ONCE = 16  # notes read at once, which hides the latency of a remote file system


class NothingUsable(ValueError):
    """No row of the input gave a record. The manifest and the list of rejected rows are written and say why."""


# Starting worker processes takes longer than this much input in one: bytes of tars, rows of tables.
_SMALL_BYTES = 100_000_000
_SMALL_ROWS = 2_000


def direct_options(workers: int) -> PipelineOptions:
    """Beam's options for this machine: worker processes, or none beside this one."""
    if workers <= 1:
        return PipelineOptions([f"--runner={DIRECT}", "--direct_running_mode=in_memory"])
    flags = [f"--runner={DIRECT}", "--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    return PipelineOptions([*flags, "--default_sdk_harness_log_level=WARNING"])


def prepare(plan: Plan, card: dataset.Card, options: PipelineOptions) -> dict[str, Any]:
    """Prepares a split; a second run does only what is missing or changed.

    Args:
      plan: what to make.
      card: what the data set says about itself.
      options: Beam's: the runner and its own options.

    Returns:
      the manifest.

    Raises:
      FileNotFoundError, ValueError: input that is not there or not what it is said to be.
      NothingUsable: no record came out.
      BlockingIOError: another run is writing this split.
    """
    source_folder = getattr(plan.source, "folder", lambda: "")()
    if source_folder and os.path.realpath(source_folder) == os.path.realpath(plan.folder):
        raise ValueError(f"{plan.folder} is to be made from itself: choose another --name or --version.")
    with _alone(plan), storage.scratch_inside(plan.work):
        tasks, planned = plan.source.tasks(plan.work)
        if _is_small(tasks) and options.get_all_options().get("direct_running_mode") == "multi_processing":
            options = direct_options(1)
        dataset.check_features(plan)
        with _log(plan) as terminal:
            _join(plan, tasks, options)
            notes = _notes(plan, tasks)
            todo = [task for task in tasks if notes[task.number] is None]
            replaced = (
                "; the set there is of other input or options, and is replaced" if _is_other(plan, tasks, todo) else ""
            )
            print(f"{plan.folder}: {len(todo)} of {len(tasks)} shards to make{replaced}", file=terminal, flush=True)
            if todo or not storage.exists(_duplicates_path(plan)):
                dataset.withdraw(plan)
                storage.remove(_duplicates_path(plan))
                for task in todo:
                    storage.remove(plan.work_path(task.number, len(tasks), "done.json"))
                with (
                    progress(plan, todo, len(tasks), terminal),
                    no_endless_wait(),
                    beam.Pipeline(options=options) as pipeline,
                ):
                    _add_shards(pipeline, plan, tasks, todo)
                notes = _notes(plan, tasks)
        missing = [number for number, note in enumerate(notes) if note is None]
        if missing:
            raise RuntimeError(
                f"Shards {missing[:5]} are not done, although the pipeline ended: was the input changed?"
            )
        found = storage.read_json(_duplicates_path(plan))
        there = [note for note in notes if note]
        manifest = dataset.finish(plan, tasks, there, planned, found, card, _remarks(plan, tasks, there))
    if not manifest["rows_out"]:
        raise NothingUsable(_why_nothing(plan, manifest))
    return manifest


def _is_other(plan: Plan, tasks: list[Task], todo: list[Task]) -> bool:
    """Whether all shards of a finished set are to be made again."""
    manifest = storage.read_json(dataset.manifest_path(plan)) if len(todo) == len(tasks) else None
    return bool(manifest) and bool(manifest.get("rows_out"))


def _is_small(tasks: list[Task]) -> bool:
    rows = sum(task.stop - task.start for task in tasks)
    return rows <= _SMALL_ROWS if rows else sum(task.size for task in tasks) <= _SMALL_BYTES


def _remarks(plan: Plan, tasks: list[Task], notes: list[dict[str, Any]]) -> list[str]:
    recaptions = getattr(plan.source, "recaptions", None)
    if recaptions and not any(note["joined"] for note in notes) and any(note["joinable"] for note in notes):
        return [f"NOTHING WAS JOINED: {join.mismatch(plan, tasks, recaptions)}."]
    return []


def _why_nothing(plan: Plan, manifest: dict[str, Any]) -> str:
    """Reasons with their counts, and a row that was rejected for the most frequent one."""
    if not manifest["rows_in"]:
        return "the input has no rows"
    counts = ", ".join(f"{entry['count']} {reason}" for reason, entry in manifest["rejected"].items())
    with storage.open_bytes(dataset.rejected_path(plan)) as file:
        entry = next(found for found in map(json.loads, file) if found["reason"] == next(iter(manifest["rejected"])))
    example = f"{entry['key'] or entry['input']}: {entry['detail']}"
    return f"none of {manifest['rows_in']} rows gave a record: {counts}; such as {example}"


def _join(plan: Plan, tasks: list[Task], options: PipelineOptions) -> None:
    """Brings the joined rows of every shard up to date, if there is a table to join."""
    recaptions = getattr(plan.source, "recaptions", None)
    if recaptions:
        fingerprint = join.join_fingerprint(plan, tasks, recaptions)
        if not join.is_joined(plan, tasks, fingerprint):
            with no_endless_wait(), beam.Pipeline(options=options) as pipeline:
                join.add_join(pipeline, plan, tasks, recaptions)
            join.note_joined(plan, fingerprint)


def _add_shards(pipeline: Any, plan: Plan, tasks: list[Task], todo: list[Task]) -> None:
    """Adds making the shards of `todo`, and counting duplicates over all, to a Beam pipeline."""
    there = sorted({task.number for task in tasks} - {task.number for task in todo})
    made = (
        pipeline
        | "Tasks" >> beam.Create(todo)
        | "SpreadTasks" >> beam.Reshuffle()
        | "MakeShard" >> beam.Map(_make, plan, len(tasks))
    )
    shards = (made, pipeline | "ShardsThere" >> beam.Create(there)) | "AllShards" >> beam.Flatten()
    duplicates.add_duplicates(shards, plan, len(tasks), _duplicates_path(plan))


def _make(task: Task, plan: Plan, count: int) -> int:
    shard.make_shard(plan, task, count)
    return task.number


def _duplicates_path(plan: Plan) -> str:
    return os.path.join(plan.work, "duplicates.json")


def _notes(plan: Plan, tasks: list[Task]) -> list[dict[str, Any] | None]:
    """What is noted about each shard, None where it must be made."""
    with ThreadPoolExecutor(_CHECKS_AT_ONCE) as pool:
        return list(pool.map(lambda task: shard.done(plan, task, len(tasks)), tasks))


@contextlib.contextmanager
def _log(plan: Plan) -> Iterator[TextIO]:
    """Sends what Beam and its workers say to `work/SPLIT/beam.log`; yields what still shows on the terminal."""
    if not storage.is_local(plan.work):
        yield sys.stderr
        return
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.path.join(plan.work, "beam.log"), "w") as log, open(saved, "w", closefd=False) as terminal:
            os.dup2(log.fileno(), 2)
            yield terminal
    except Exception:
        logging.exception("The run failed.")  # in full where Beam's own words are
        raise
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    """Keeps a second run on this machine off the same split; the lock goes with the process."""
    if not storage.is_local(plan.work):
        yield
        return
    import fcntl

    try:
        os.makedirs(plan.work, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--data_dir: {plan.folder} cannot be made: {error}") from error
    with open(os.path.join(plan.work, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"Another run is writing {plan.folder}, split {plan.split}.") from error
        yield
