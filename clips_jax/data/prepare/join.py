"""The recaptions of each tar, joined by Beam before any picture is touched.

Join values of the tars and rows of the table are cut into partitions by hash, matched within each partition, and
gathered into one file per shard. Pictures never travel, a worker holds one partition, and each shard can then be
written by itself.

    tars ──► (partition, shard, values) ─┐
                                         ├─ CoGroupByKey ──► (shard, {value: row}) ── GroupByKey ──► file per shard
    table ─► (partition, values, rows) ──┘
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from clips_jax.data.file_patterns import list_files
from clips_jax.data.prepare import storage, tar_source
from clips_jax.data.prepare.plan import Plan, task_json
from clips_jax.data.prepare.rows import Task
from clips_jax.data.prepare.tar_source import Recaptions

# Bytes of table files per partition; a worker holds a few times this as Python objects. Assumption.
_PARTITION_BYTES = 64 << 20
# Rows of a table sent on together.
_BATCH_ROWS = 20_000

_Rows = dict[str, dict[str, Any]]


def table_files(recaptions: Recaptions) -> list[str]:
    """The table's files.

    Raises:
      ValueError: a file lacks the join column; names the columns that it has.
    """
    import pyarrow.parquet

    files = list_files(recaptions.pattern, (".parquet",))
    with storage.open_bytes(files[0]) as file:
        names = pyarrow.parquet.ParquetFile(file).schema_arrow.names
    column = recaptions.join_column or recaptions.join_on
    if column not in names:
        raise ValueError(f"--join_column {column}: {files[0]} has the columns {', '.join(names)}.")
    if not set(names) & set(recaptions.columns):
        raise ValueError(
            f"{files[0]}: none of its columns {', '.join(names)} is a text; name it, e.g. --recaption NAME."
        )
    return files


def join_fingerprint(plan: Plan, tasks: list[Task], recaptions: Recaptions) -> str:
    """Changes with any tar, table or option of the join."""
    files = [(path, *storage.state(path)) for path in table_files(recaptions)]
    return plan.fingerprint([task_json(task) for task in tasks], files)


def add_join(pipeline: Any, plan: Plan, tasks: list[Task], recaptions: Recaptions) -> None:
    """Adds the join to a Beam pipeline; it writes the sidecar file of every shard."""
    files = table_files(recaptions)
    size = sum(storage.state(path)[0] for path in files)
    partitions = max(1, -(-size // _PARTITION_BYTES))
    groups = [(path, number, group) for number, path in enumerate(files) for group in range(_row_groups(path))]
    values = (
        pipeline
        | "Tars" >> beam.Create(tasks)
        | "SpreadTars" >> beam.Reshuffle()
        | "JoinValues" >> beam.FlatMap(_values_by_partition, plan.work, recaptions.join_on, partitions)
    )
    rows = (
        pipeline
        | "RowGroups" >> beam.Create(groups)
        | "SpreadRowGroups" >> beam.Reshuffle()
        | "Rows" >> beam.FlatMap(_rows_by_partition, recaptions, partitions)
    )
    shards = pipeline | "EveryShard" >> beam.Create([(task.number, {}) for task in tasks])
    matched = {"values": values, "rows": rows} | beam.CoGroupByKey() | "Match" >> beam.FlatMap(_match)
    _ = (
        (matched, shards)
        | beam.Flatten()
        | "ByShard" >> beam.GroupByKey()
        | "WriteSidecars" >> beam.Map(_write_sidecar, plan.work)
    )


def _row_groups(path: str) -> int:
    import pyarrow.parquet

    with storage.open_bytes(path) as file:
        return pyarrow.parquet.ParquetFile(file).num_row_groups


def _partition(value: str, partitions: int) -> int:
    return int.from_bytes(hashlib.blake2b(value.encode("utf-8", "replace"), digest_size=8).digest(), "big") % partitions


def _values_by_partition(
    task: Task, work: str, join_on: str, partitions: int
) -> Iterator[tuple[int, tuple[int, list[str]]]]:
    by_partition: dict[int, list[str]] = defaultdict(list)
    for value in tar_source.join_values(task, work, join_on):
        by_partition[_partition(value, partitions)].append(value)
    for partition, values in by_partition.items():
        yield partition, (task.number, values)


def _rows_by_partition(
    group: tuple[str, int, int], recaptions: Recaptions, partitions: int
) -> Iterator[tuple[int, tuple[tuple[int, int, int], list[tuple[str, dict[str, Any]]]]]]:
    """Rows of a row group with their place in the table, (file, row group, batch), by which the first one wins."""
    import pyarrow.parquet

    from clips_jax.data.prepare.table_source import rows_of_batch

    path, number, row_group = group
    column = recaptions.join_column or recaptions.join_on
    with storage.open_bytes(path) as binary:
        file = pyarrow.parquet.ParquetFile(binary)
        wanted = [name for name in file.schema_arrow.names if name == column or name in recaptions.columns]
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[row_group], columns=wanted)
        for batch_number, batch in enumerate(batches):
            by_partition: dict[int, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
            for row in rows_of_batch(batch):
                value = row[column]
                if value is not None and value == value:  # NaN is not
                    value = tar_source.normal_join_value(value.decode() if isinstance(value, bytes) else value)
                    texts = {name: text for name, text in row.items() if name in recaptions.columns}
                    by_partition[_partition(value, partitions)].append((value, texts))
            for partition, found in by_partition.items():
                yield partition, ((number, row_group, batch_number), found)


def _match(element: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[tuple[int, _Rows]]:
    _, groups = element
    pairs = list(groups["values"])
    wanted = {value for _, values in pairs for value in values}
    first: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}
    for place, rows in groups["rows"]:
        for position, (value, texts) in enumerate(rows):
            if value in wanted and (value not in first or (*place, position) < first[value][0]):
                first[value] = ((*place, position), texts)
    for shard, values in pairs:
        found = {value: first[value][1] for value in values if value in first}
        if found:
            yield shard, found


def _write_sidecar(element: tuple[int, Iterable[_Rows]], work: str) -> None:
    shard, parts = element
    joined: _Rows = {}
    for part in parts:
        joined.update(part)
    text = json.dumps({value: joined[value] for value in sorted(joined)}, default=_as_text)
    storage.write_text(tar_source.sidecar(work, shard), text)
    storage.write_json(tar_source.sidecar_hash(work, shard), hashlib.sha256(text.encode()).hexdigest())


def _as_text(value: Any) -> str:
    """Bytes of a column that is not UTF-8; the surrogates are counted when the text is cleaned."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def is_joined(plan: Plan, tasks: list[Task], fingerprint: str) -> bool:
    """Whether the sidecar files of an earlier run are those that are wanted."""
    note = storage.read_json(_note(plan))
    if not isinstance(note, dict) or note.get("fingerprint") != fingerprint:
        return False
    there = set(storage.names(plan.work))
    return all(os.path.basename(tar_source.sidecar_hash(plan.work, task.number)) in there for task in tasks)


def note_joined(plan: Plan, fingerprint: str) -> None:
    """Notes that all sidecar files are there."""
    storage.write_json(_note(plan), {"fingerprint": fingerprint})


def _note(plan: Plan) -> str:
    return os.path.join(plan.work, "join.json")
