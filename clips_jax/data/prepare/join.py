"""The recaptions of each tar, joined by Beam before any picture is touched.

Join values of the tars and rows of the table are cut into partitions by hash, matched within each partition, and
gathered into one file per shard. Pictures never travel, a worker holds one partition, and each shard can then be
written by itself.

    tars ──► (partition, shard, values) ─┐
                                         ├─ CoGroupByKey ──► (shard, {value: row}) ── GroupByKey ──► file per shard
    table ─► (partition, values, rows) ──┘
"""

import hashlib
import itertools
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

# By join value how many rows there are, and the one that is taken.
_Rows = dict[str, tuple[int, dict[str, Any]]]


def table_files(recaptions: Recaptions) -> list[str]:
    """The table's files."""
    return list_files(recaptions.pattern, (".parquet",))


def join_fingerprint(plan: Plan, tasks: list[Task], recaptions: Recaptions) -> str:
    """Changes with any tar, table or option of the join."""
    files = [(path, *storage.state(path)) for path in table_files(recaptions)]
    return plan.fingerprint([task_json(task) for task in tasks], files)


def add_join(pipeline: Any, plan: Plan, tasks: list[Task], recaptions: Recaptions) -> None:
    """Adds the join to a Beam pipeline; it writes the sidecar file of every shard.

    Raises:
      ValueError: a file of the table is no parquet, or lacks the join column or any text; names its columns.
    """
    files = table_files(recaptions)
    size = sum(storage.state(path)[0] for path in files)
    partitions = max(1, -(-size // _PARTITION_BYTES))
    groups = [(path, n, group) for n, path in enumerate(files) for group in range(_row_groups(path, recaptions))]
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


def _row_groups(path: str, recaptions: Recaptions) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        with storage.open_bytes(path) as binary:
            file = pyarrow.parquet.ParquetFile(binary)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"--recaptions: {path} is no parquet file, or a damaged one: {error}") from error
    names = file.schema_arrow.names
    column = recaptions.join_column or recaptions.join_on
    if column not in names:
        raise ValueError(f"--join_column {column}: no such column in {path}; it has {', '.join(names)}.")
    if not set(names) & set(recaptions.columns):
        raise ValueError(
            f"--recaptions: none of the columns of {path} is known as a text; name one of {', '.join(names)}, e.g. "
            "--recaption NAME."
        )
    return file.num_row_groups


def _partition(value: str, partitions: int) -> int:
    value = tar_source.without_zeros(value)
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
                    value = tar_source.normal_join_value(value)
                    texts = {name: text for name, text in row.items() if name in recaptions.columns}
                    by_partition[_partition(value, partitions)].append((value, texts))
            for partition, found in by_partition.items():
                yield partition, ((number, row_group, batch_number), found)


def _match(element: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[tuple[int, _Rows]]:
    """Joins a partition. Of several rows the first one is taken that has most texts.

    A value without a row of its own, such as "000012", takes the rows of the same number, such as "12".
    """
    _, groups = element
    pairs = list(groups["values"])
    wanted = {value for _, values in pairs for value in values}
    wanted |= {tar_source.without_zeros(value) for value in wanted}
    best: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {}
    counts: dict[str, int] = defaultdict(int)
    for place, rows in groups["rows"]:
        for position, (value, texts) in enumerate(rows):
            for name in {value, tar_source.without_zeros(value)} & wanted:
                counts[name] += 1
                order = (sum(map(_is_empty, texts.values())), *place, position)
                if name not in best or order < best[name][0]:
                    best[name] = (order, texts)
    for shard, values in pairs:
        found = {}
        for value in values:
            name = value if value in best else tar_source.without_zeros(value)
            if name in best:
                found[value] = (counts[name], best[name][1])
        if found:
            yield shard, found


def _is_empty(text: Any) -> bool:
    return text is None or (isinstance(text, str | bytes) and not text.strip())


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


def mismatch(plan: Plan, tasks: list[Task], recaptions: Recaptions) -> str:
    """What samples and table hold, for a person to see why nothing was joined."""
    ours = tar_source.join_values(tasks[0], plan.work, recaptions.join_on)
    path, column = table_files(recaptions)[0], recaptions.join_column or recaptions.join_on
    batches = _rows_by_partition((path, 0, 0), recaptions, 1) if _row_groups(path, recaptions) else iter(())
    theirs = [value for _, (_, rows) in itertools.islice(batches, 1) for value, _ in rows]
    samples = f"are such as {', '.join(ours[:2])}" if ours else "are missing"
    table = f"are such as {', '.join(theirs[:2])}" if theirs else "are empty"
    return f"the samples' {recaptions.join_on} {samples}, those of the table's column {column} {table}"


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
