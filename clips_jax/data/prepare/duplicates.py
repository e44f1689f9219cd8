"""Pictures and keys that occur more than once in the whole set, counted by Beam from the shards' hashes.

Hashes travel as arrays, 12 bytes a record, cut into partitions by their first bits; a worker holds one partition.
Nothing is removed: which of two equal pictures has the better texts is not for this program to say.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from clips_jax.data.prepare import storage
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.tally import EXAMPLES

_COLUMNS = ("image", "key")
# 10^9 records in 256 partitions are 47 MB of hashes and positions each.
_PARTITION_BITS = 8


def add_duplicates(shards: Any, plan: Plan, count: int, output: str) -> None:
    """Adds the count to a Beam pipeline; it writes {"image": {…}, "key": {…}} as JSON to `output`.

    Args:
      shards: PCollection of the numbers of all shards, each when it is done.
      plan: the split.
      count: of shards.
      output: file.
    """
    _ = (
        shards
        | "SpreadShards" >> beam.Reshuffle()
        | "Hashes" >> beam.FlatMap(_hashes_by_partition, plan, count)
        | "ByHash" >> beam.GroupByKey()
        | "Count" >> beam.Map(_count)
        | "Sum" >> beam.CombineGlobally(_sum)
        | "WriteCounts" >> beam.Map(lambda counts: storage.write_json(output, counts))
    )


def _hashes_by_partition(
    shard: int, plan: Plan, count: int
) -> Iterator[tuple[tuple[str, int], tuple[int, bytes, bytes]]]:
    with storage.open_bytes(plan.work_path(shard, count, "hashes.npy")) as file:
        hashes = np.load(file)
    rows = np.arange(len(hashes), dtype=np.uint32)
    for column, name in enumerate(_COLUMNS):
        values = np.ascontiguousarray(hashes[:, column])
        partitions = values >> np.uint64(64 - _PARTITION_BITS)
        for partition in np.unique(partitions):
            chosen = partitions == partition
            yield (name, int(partition)), (shard, values[chosen].tobytes(), rows[chosen].tobytes())


def _count(element: tuple[tuple[str, int], Iterable[tuple[int, bytes, bytes]]]) -> dict[str, Any]:
    (name, _), parts = element
    ordered = sorted(parts)  # by shard, so that "first" does not depend on the order of arrival
    values = np.concatenate([np.frombuffer(part[1], np.uint64) for part in ordered])
    shards = np.concatenate([np.full(len(part[2]) // 4, part[0], np.uint32) for part in ordered])
    rows = np.concatenate([np.frombuffer(part[2], np.uint32) for part in ordered])
    order = np.argsort(values, kind="stable")
    again = np.zeros(len(values), bool)
    again[1:] = values[order][1:] == values[order][:-1]
    repeats = order[again]
    first = np.lexsort((rows[repeats], shards[repeats]))[:EXAMPLES]
    examples = [(int(shards[repeats[i]]), int(rows[repeats[i]])) for i in first]
    return {name: {"count": len(repeats), "examples": examples}}


def _sum(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {name: {"count": 0, "examples": []} for name in _COLUMNS}
    for part in parts:
        for name, found in part.items():
            total[name]["count"] += found["count"]
            examples = [*map(tuple, total[name]["examples"]), *map(tuple, found["examples"])]
            total[name]["examples"] = sorted(examples)[:EXAMPLES]
    return json.loads(json.dumps(total))
