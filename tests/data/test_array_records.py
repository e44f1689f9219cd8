import os
import pickle
import threading

import numpy as np
import pytest
from array_record.python import array_record_module

from clips_jax.data import array_records
from clips_jax.data.array_records import ArrayRecordFiles
from clips_jax.data.examples import BadRecord, parse_example

SHARDS, PER_SHARD = 4, 25


def content(number):
    return np.random.default_rng(number).bytes(300) + str(number).encode()


@pytest.fixture
def folder(tmp_path):
    for shard in range(SHARDS):
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / name(shard)), "group_size:1")
        for i in range(PER_SHARD):
            writer.write(content(shard * PER_SHARD + i))
        writer.close()
    return tmp_path


def name(shard):
    return f"x-{shard:05}-of-{SHARDS:05}"


def opened(folder, **changes):
    whole = {"skip": [0] * SHARDS, "take": [PER_SHARD] * SHARDS}
    return ArrayRecordFiles(str(folder), [name(shard) for shard in range(SHARDS)], **(whole | changes))


def bad(records):
    return [number for number, record in enumerate(records) if isinstance(record, BadRecord)]


def test_any_order_over_all_shards(folder):
    files = opened(folder)
    assert len(files) == SHARDS * PER_SHARD
    order = np.random.default_rng(0).integers(0, len(files), 200)
    assert files.read_each(order) == [content(number) for number in order]
    assert pickle.loads(pickle.dumps(files)).read_each([99, 0]) == [content(99), content(0)]
    assert files.read_each([]) == []
    for index in (-1, len(files)):
        with pytest.raises(IndexError):
            files.read_each([0, index])


def test_parts_of_shards(folder):
    files = opened(folder, skip=[20, 0, 0, 3], take=[5, 0, 2, 1])
    assert files.read_each(range(len(files))) == [content(n) for n in (20, 21, 22, 23, 24, 50, 51, 78)]


def test_a_flipped_byte_costs_its_record(folder):
    path = folder / name(1)
    data = bytearray(path.read_bytes())
    data[data.index(content(30)[:100]) + 50] ^= 0xFF
    path.write_bytes(bytes(data))
    files = opened(folder)
    records = files.read_each(range(len(files)))
    assert bad(records) == [30] and name(1) in str(records[30]) and "record 5" in str(records[30])
    assert all(record == content(number) for number, record in enumerate(records) if number != 30)


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "removed"])
def test_a_damaged_shard_costs_its_records(folder, damage):
    files, path = opened(folder), folder / name(2)
    if damage == "removed":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"" if damage == "empty" else np.random.default_rng(0).bytes(5000))
    records = files.read_each(range(len(files)))
    assert bad(records) == list(range(50, 75)) and "cannot be opened" in str(records[50])


def test_a_shard_that_comes_back_is_read_again(folder):
    files, path = opened(folder), folder / name(2)
    data = path.read_bytes()
    path.unlink()
    assert bad(files.read_each([60])) == [0]
    path.write_bytes(data)
    assert files.read_each([60]) == [content(60)]


def test_shards_that_are_missing_at_the_start(folder):
    (folder / name(3)).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 4 shards are missing in .*{name(3)}"):
        opened(folder)


@pytest.mark.parametrize("limit", ["MAX_OPEN_SHARDS", "MAX_OPEN_RECORDS"])
def test_few_shards_are_open_at_a_time(folder, monkeypatch, limit):
    monkeypatch.setattr(array_records, limit, 2 if limit == "MAX_OPEN_SHARDS" else 2 * PER_SHARD)
    files = opened(folder)
    order = np.random.default_rng(0).permutation(len(files))
    for index in order:
        assert files.read_each([index]) == [content(index)]
        assert len(files._open) <= 2 and files._open_records == len(files._open) * PER_SHARD


def test_threads_share_one_reader(folder, monkeypatch):
    monkeypatch.setattr(array_records, "MAX_OPEN_SHARDS", 2)
    files, wrong = opened(folder), []

    def read(seed):
        order = np.random.default_rng(seed).integers(0, len(files), 400)
        if files.read_each(order) != [content(number) for number in order]:
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bytes_that_are_no_example():
    with pytest.raises(BadRecord, match="not a tf.train.Example"):
        parse_example(b"\xff\xfe no message", {"image": "image"})
    assert parse_example(b"", {"alt_text": "text", "rewrites": "texts"}) == {"alt_text": "", "rewrites": []}
    for kind in ("image", "integer"):
        with pytest.raises(BadRecord, match="no 'x'"):
            parse_example(b"", {"x": kind})
