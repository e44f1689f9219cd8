"""Random access to the records of many ArrayRecord files ("shards"), for data sets of any size.

Memory does not grow with the number of records: per shard there are a file name and two numbers, and of the files'
own indices (11 bytes a record) only those of the shards used last are kept.
"""

import collections
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from clips_jax.data.examples import BadRecord

# Without read-ahead and threads: random access is all there is (array_record's documentation). Of the file's end 128 kB
# are read at once instead of 1 MB, which holds most indices: opening a shard of 1,000 records takes 55 µs, not 128.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:131072"
_READER_BUFFER = 32_768  # bytes; array_record's own choice for random access
# Shards kept open. The index of 10 million records takes 110 MB, opening a shard of 16,000 records 0.7 ms (measured);
# the soft limit of open files is usually 1,024.
MAX_OPEN_RECORDS = 10_000_000
MAX_OPEN_SHARDS = 768
# Fewer records of one shard are read one by one: array_record reads a list in threads, which costs 50 µs of CPU time a
# record of 64 kB instead of 15 (measured).
_LEAST_IN_THREADS = 16


class ArrayRecordFiles:
    """The bytes of records by position over all shards. Picklable: a copy opens the files anew.

    Attributes:
      folder: where the files are.
    """

    def __init__(self, folder: str, names: Sequence[str], skip: Sequence[int], take: Sequence[int]):
        """Of shard i, `names[i]` in `folder`, `take[i]` records from `skip[i]` on are used.

        Raises:
          FileNotFoundError: shards are missing; says how many and which.
        """
        self.folder = folder
        self._names = np.array([name.encode() for name in names])  # 10^5 names: 4 MB instead of 10
        self._skip = np.array(skip, np.int64)
        self._ends = np.cumsum(np.array(take, np.int64))
        present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing = [name for name in names if name not in present]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(names)} shards are missing in {folder}, the first {missing[0]}."
            )
        self._reset()

    def _reset(self) -> None:
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._open_records = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("folder", "_names", "_skip", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read_each(self, indices: Sequence[int]) -> list[bytes | BadRecord]:
        """The records at `indices`, in that order, each its bytes or the error that says why there are none.

        Raises:
          IndexError: an index is outside 0 to len - 1.
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if outside.size:
            raise IndexError(f"Record {outside[0]} of {len(self)} in {self.folder}.")
        shards = np.searchsorted(self._ends, wanted, side="right")
        positions = self._skip[shards] + wanted - np.where(shards > 0, self._ends[shards - 1], 0)
        found: list[bytes | BadRecord] = [BadRecord()] * len(wanted)
        order = np.argsort(shards, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            if rows.size:
                records = self._read_shard(int(shards[rows[0]]), positions[rows].tolist())
                for row, record in zip(rows, records, strict=True):
                    found[row] = record
        return found

    def _read_shard(self, shard: int, positions: list[int]) -> list[bytes | BadRecord]:
        if len(positions) >= _LEAST_IN_THREADS:
            try:
                return self._reader(shard).read(positions)
            except Exception:  # one record of many cannot be read, or the file; array_record raises many kinds
                pass
        return [self._read_one(shard, position) for position in positions]

    def _read_one(self, shard: int, position: int) -> bytes | BadRecord:
        for last in (False, True):
            try:
                return self._reader(shard).read([position])[0]
            except Exception as error:
                if last:
                    return BadRecord(f"record {position} of {self.folder}/{self._name(shard)}: {error}")
                self._forget(shard)  # a network file system may have dropped the file: once more, opened anew
        raise AssertionError

    def _name(self, shard: int) -> str:
        return self._names[shard].decode()

    def _reader(self, shard: int) -> Any:
        """The open reader of a shard; the least recently used ones are dropped when too much is open."""
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

        path = os.path.join(self.folder, self._name(shard))
        reader = array_record_module.ArrayRecordReader(
            path, options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
        )
        if not reader.ok() or not reader.num_records():  # opening does not raise
            raise BadRecord("the file cannot be opened as ArrayRecord: missing, cut short or overwritten")
        with self._lock:
            if shard not in self._open:  # another thread may have been faster
                self._open[shard] = reader
                self._open_records += reader.num_records()
            while len(self._open) > 1 and (len(self._open) > MAX_OPEN_SHARDS or self._open_records > MAX_OPEN_RECORDS):
                _, oldest = self._open.popitem(last=False)  # closed when the last thread lets go of it
                self._open_records -= oldest.num_records()
        return reader

    def _forget(self, shard: int) -> None:
        with self._lock:
            reader = self._open.pop(shard, None)
            if reader is not None:
                self._open_records -= reader.num_records()
