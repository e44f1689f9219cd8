"""One task to one output shard, whole or not at all; what is held in memory is one row and 16 bytes per record."""

import hashlib
import json
import time
from typing import Any

import numpy as np

from clips_jax.data.prepare import pictures, storage
from clips_jax.data.prepare.plan import Plan, task_json
from clips_jax.data.prepare.prepared_source import Prepared
from clips_jax.data.prepare.record import make_record, record_hash, rejected, with_picture
from clips_jax.data.prepare.rows import Row, Task
from clips_jax.data.prepare.tally import Tally
from clips_jax.data.prepare.tar_source import NO_END_MARKER, sidecar_hash
from clips_jax.data.tars import Rejected

# Each record is compressed by itself, so that one read decodes one record (TFDS writes them so, too).
_ARRAY_RECORD_OPTIONS = "group_size:1"
_LONGEST_DETAIL = 500  # characters: what should be a path may be a picture in base64
HASH_MODULUS = 1 << 256


def shard_fingerprint(plan: Plan, task: Task, count: int) -> str:
    """Changes with everything that a shard depends on: its input, its own joined rows, the options."""
    joined = storage.read_json(sidecar_hash(plan.work, task.number)) if getattr(plan.source, "recaptions", None) else ""
    return plan.fingerprint(task_json(task), count, joined)


def done(plan: Plan, task: Task, count: int) -> dict[str, Any] | None:
    """What an earlier run noted about this shard; None if it must be made."""
    note = storage.read_json(plan.work_path(task.number, count, "done.json"))
    if not isinstance(note, dict) or note.get("fingerprint") != shard_fingerprint(plan, task, count):
        return None
    paths = (plan.shard_path(task.number, count), plan.work_path(task.number, count, "hashes.npy"))
    return note if all(map(storage.exists, paths)) else None


def make_shard(plan: Plan, task: Task, count: int) -> dict[str, Any]:
    """Writes a shard, its list of rejected rows, its hashes and, last, the note that it is done.

    Returns:
      the note: counts, tallies and the sum of its records' hashes, JSON.
    """
    started = time.monotonic()
    writer = _Writer(plan)
    with (
        storage.whole_file(plan.shard_path(task.number, count)) as records,
        storage.whole_file(plan.work_path(task.number, count, "rejected.jsonl")) as refused,
        open(refused, "w", encoding="utf-8") as refused_file,
    ):
        writer.write(task, records, refused_file)
    with storage.whole_file(plan.work_path(task.number, count, "hashes.npy")) as path, open(path, "wb") as file:
        np.save(file, np.array(writer.hashes, np.uint64).reshape(-1, 2))
    note = {
        "fingerprint": shard_fingerprint(plan, task, count),
        "input": task.path,
        "rows_in": writer.rows_in,
        "rows_out": len(writer.hashes),
        "joinable": writer.joinable,
        "joined": writer.joined,
        "num_bytes": writer.num_bytes,
        "image_bytes": writer.image_bytes,
        "hash_sum": f"{writer.hash_sum:064x}",
        "rejected": writer.rejected.counts,
        "normalised": writer.normalised.counts,
        "seconds": round(time.monotonic() - started, 3),
    }
    storage.write_json(plan.work_path(task.number, count, "done.json"), note)
    return note


class _Writer:
    """Writes the records of a task and keeps count."""

    def __init__(self, plan: Plan):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self._plan = plan
        self._features = plan.features()
        self._serializer: Any = ExampleSerializer(self._features.get_serialized_info())
        self.rejected, self.normalised = Tally(), Tally()
        self.hashes: list[tuple[int, int]] = []
        self.rows_in = self.joinable = self.joined = self.num_bytes = self.image_bytes = self.hash_sum = 0

    def write(self, task: Task, path: str, refused: Any) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        output = ArrayRecordWriter(path, _ARRAY_RECORD_OPTIONS)
        try:
            for row in self._plan.source.rows(task, self._plan.work):
                if isinstance(row, Rejected) and row.reason == NO_END_MARKER:
                    self.normalised.add(row.reason, row.detail)
                    continue
                self.rows_in += 1
                result = self._record(row)
                if isinstance(result, Rejected):
                    self.rejected.add(result.reason, result.key)
                    detail = result.detail[:_LONGEST_DETAIL]
                    entry = {"key": result.key, "reason": result.reason, "detail": detail, "input": task.path}
                    refused.write(json.dumps(entry) + "\n")
                else:
                    self._add(result, output)
        finally:
            output.close()

    def _record(self, row: Row | Rejected) -> dict[str, Any] | Rejected:
        if isinstance(row, Rejected):
            return row
        if row.joined is not None:
            self.joinable += 1
            self.joined += row.joined > 0
        plan = self._plan
        try:
            if isinstance(plan.source, Prepared):
                record, notes = with_picture(row, plan.picture)
            else:
                record, notes = make_record(row, plan.texts, plan.picture)
        except pictures.Refused as error:
            return rejected(row, error)
        for note in [*notes, *(["join.several_rows"] if (row.joined or 0) > 1 else [])]:
            self.normalised.add(note, row.key)
        return record

    def _add(self, record: dict[str, Any], output: Any) -> None:
        data = self._serializer.serialize_example(self._features.encode_example(record))
        output.write(data)
        self.num_bytes += len(data)
        self.image_bytes += len(record["image"])
        self.hash_sum = (self.hash_sum + int.from_bytes(record_hash(record), "big")) % HASH_MODULUS
        self.hashes.append((_short_hash(record["image"]), _short_hash(str(record.get("id", "")).encode())))


def _short_hash(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
