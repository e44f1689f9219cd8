import dataclasses
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips_jax.config import ConfigError, DataConfig, SourceConfig, TextConfig, TokenizerConfig
from clips_jax.data import pipeline, train_tokenizer
from clips_jax.data.order import Mixture, epoch_of, record_index
from clips_jax.data.pipeline import train_batches
from clips_jax.data.triples import BadRecord, Records, open_builder, texts_of, tokenizer_path
from tests.data.tiny_set import (
    BATCH,
    COUNT,
    SIZE,
    TEXTS,
    assert_same,
    build,
    load,
    make_config,
    picture,
    record_numbers,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("tfds"))


# The order of the records.


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_uses_every_record_once(num_records, seed, epoch):
    positions = range(epoch * num_records, (epoch + 1) * num_records)
    assert sorted(record_index(p, num_records, seed) for p in positions) == list(range(num_records))
    assert {epoch_of(p, num_records) for p in positions} == {epoch}


def test_epochs_and_seeds_differ_in_order():
    orders = {tuple(record_index(e * 50 + p, 50, seed) for p in range(50)) for e in range(4) for seed in range(4)}
    assert len(orders) == 16


def test_first_record_is_uniform_over_seeds():
    counts = np.bincount([record_index(3, 10, seed) for seed in range(500)], minlength=10)
    assert ((counts - 50) ** 2 / 50).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


# Records.


def test_records(folder):
    records = Records("tiny/whole", "train", folder)
    assert len(records) == COUNT and set(records.text_features) == {"id", "alt_text", "recaption", "aliases"}
    everything = records.read(range(COUNT))
    assert sorted(int(record["id"]) for record in everything) == list(range(COUNT))
    record = records[4]
    assert record == everything[4] and [everything[5], everything[1]] == records.read([5, 1])
    number = int(record["id"])
    assert record["image"] == picture(number) and record["alt_text"] == f"picture {number}"
    assert record["aliases"] == ["grau", "grå"] and record["group"] == number % 2
    assert record["is_flag"] == (number % 2 == 0)
    assert pickle.loads(pickle.dumps(records))[4] == record
    for index in (-1, COUNT):
        with pytest.raises(IndexError):
            records[index]


def test_split_slices(folder):
    assert len(Records("tiny/whole", "train[:50%]", folder)) in (18, 19)
    for smaller, count in (("min(1000,10%)", 3), ("min(2,50%)", 2), ("min(9, 1%)", 1)):  # of 37
        first, rest = (Records("tiny/whole", f"train[{part}]", folder) for part in (f":{smaller}", f"{smaller}:"))
        assert [len(first), len(rest)] == [count, COUNT - count]
        whole = Records("tiny/whole", "train", folder)
        assert (first[0]["id"], rest[0]["id"]) == (whole[0]["id"], whole[count]["id"])
    with pytest.raises(ValueError, match="test"):
        Records("tiny/whole", "test", folder)


def test_what_is_not_prepared_names_the_command(folder):
    for dataset in ("tiny/other", "nothing", "mnist"):
        with pytest.raises(FileNotFoundError, match=f"{dataset}.*tfds build {dataset}"):
            open_builder(dataset, folder)


def test_tokenizer_path(folder):
    data = DataConfig("tiny/whole", TEXTS, data_dir=folder)
    assert tokenizer_path(data, TokenizerConfig("x.model")) == "x.model"
    assert tokenizer_path(data, TokenizerConfig()) == f"{folder}/tiny/whole/1.0.0/tokenizer.model"


def test_fallbacks():
    both = {"a": TextConfig(1, fallback="b"), "b": TextConfig(1, fallback="a"), "c": TextConfig(1)}
    assert texts_of({"a": " \n", "b": "x", "c": ""}, both) == {"a": "x", "b": "x", "c": ""}
    assert texts_of({"a": "", "b": "", "c": "y"}, both) == {"a": "", "b": "", "c": "y"}
    chain = {"a": TextConfig(1, fallback="b"), "b": TextConfig(1, fallback="c"), "c": TextConfig(1)}
    assert texts_of({"a": "", "b": "", "c": "y"}, chain) == {"a": "y", "b": "y", "c": "y"}


# Batches.


def test_a_batch_is_what_the_contract_says(folder):
    config = make_config(folder)
    batch, stats = next(train_batches(config, np.arange(BATCH), 0, 1))
    assert batch.images.shape == (BATCH, SIZE, SIZE, 3) and batch.images.dtype == np.uint8
    assert set(batch.texts) == set(TEXTS) and stats["bad_records"] == 0
    for name, text in batch.texts.items():
        assert text.tokens.shape == text.sentence_ids.shape == (BATCH, TEXTS[name].length)
        assert text.tokens.dtype == text.sentence_ids.dtype == np.int32
    records = Records("tiny/whole", "train", folder)
    for row, number in enumerate(record_numbers(batch.images)):
        assert int(records[record_index(row, COUNT, 0)]["id"]) == number
        sentences = batch.texts["recaption"].sentence_ids[row].max() + 1
        assert sentences == (1 if number % 5 == 0 else 3)  # an empty recaption falls back to the AltText


def test_a_batch_does_not_depend_on_where_the_run_started(folder):
    config = make_config(folder)
    whole = load(config, stop=9)
    assert_same(whole[5:], load(config, start=5, stop=9))
    assert_same(whole, load(make_config(folder, threads=1, prefetch=1), stop=9))
    [(other_seed, _)] = load(make_config(folder, seed=1), stop=1)
    assert record_numbers(other_seed[0]) != record_numbers(whole[0][0][0])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_slices_make_up_the_batch(folder, processes):
    config = make_config(folder, batch_size=8)
    whole = load(config)
    slices = [load(config, np.arange(8).reshape(processes, -1)[process]) for process in range(processes)]
    for step, (arrays, _) in enumerate(whole):
        for leaf, array in enumerate(arrays):
            parts = [part[step][0][leaf] for part in slices]
            np.testing.assert_array_equal(np.concatenate(parts), array)
    odd = load(config, np.array([1, 3, 6]))
    np.testing.assert_array_equal(odd[2][0][0], whole[2][0][0][[1, 3, 6]])


def test_every_record_once_per_epoch_also_across_batches(folder):
    steps = load(make_config(folder), stop=8)  # 80 positions, 37 records: batches 3 and 7 straddle epochs
    numbers = sum((record_numbers(arrays[0]) for arrays, _ in steps), [])
    assert sorted(numbers[:COUNT]) == sorted(numbers[COUNT : 2 * COUNT]) == list(range(COUNT))
    assert numbers[:COUNT] != numbers[COUNT : 2 * COUNT]


def test_closing_early_ends_the_threads(folder):
    batches = train_batches(make_config(folder), np.arange(BATCH), 0, 100)
    next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_bad_records_are_replaced_the_same_way_each_time_and_counted(folder):
    config = make_config(folder, "tiny/damaged", max_bad_fraction=1.0)
    steps = load(config, stop=6)
    assert_same(steps[3:], load(config, start=3, stop=6))
    records = Records("tiny/damaged", "train", folder)
    for step, (arrays, stats) in enumerate(steps):
        wanted = [int(records[record_index(step * BATCH + row, COUNT, 0)]["id"]) for row in range(BATCH)]
        used = record_numbers(arrays[0])
        assert stats["by_reason"].get("image", 0) == sum(number % 4 == 0 for number in wanted)
        assert all(number % 4 for number in used)
        assert all(a == b for a, b in zip(wanted, used, strict=True) if a % 4)
    half = load(config, np.arange(5), stop=6)
    np.testing.assert_array_equal(half[4][0][0], steps[4][0][0][:5])


def test_errors_before_the_first_batch(folder):
    for rows in ([], [0, 10], [-1, 0], [3, 2], [1, 1]):
        with pytest.raises(ValueError, match="rows"):
            train_batches(make_config(folder), np.array(rows, int), 0, 1)
    config = make_config(folder)
    for name in ("caption", "group"):
        config.data.texts[name] = TextConfig(3)
        with pytest.raises(ValueError, match=rf"data\.texts\.{name}: .*aliases, alt_text, id, recaption"):
            train_batches(config, np.arange(BATCH), 0, 1)
        del config.data.texts[name]
    with pytest.raises(FileNotFoundError):
        train_batches(make_config(folder, "tiny/none"), np.arange(BATCH), 0, 1)


# Programs.


def test_tensorflow_is_not_imported(folder):
    program = f"""
import sys
import numpy as np
from tests.data.tiny_set import make_config
from clips_jax.data.pipeline import train_batches
print(len(list(train_batches(make_config({folder!r}), np.arange(3), 0, 2))), "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2])
    assert result.stdout.strip() == "2 False", result.stderr


def test_train_tokenizer_command(folder, tmp_path, capsys):
    output = tmp_path / "trained.model"
    arguments = ["--dataset", "tiny/whole", "--data_dir", folder, "--vocab_size", "70", "--output", str(output)]
    train_tokenizer.main(arguments + ["--max_texts", "30"])
    printed = capsys.readouterr().out
    assert output.exists() and "from 30 texts" in printed and "picture" in printed
    with pytest.raises(SystemExit):
        train_tokenizer.main(arguments + ["--texts", "caption"])
    assert "caption is not among" in capsys.readouterr().err
    for mistake, message in (
        (["--dataset", "absent"], "'absent' is not prepared in"),
        (["--split", "test"], "Unknown split 'test'"),
        (["--vocab_size", "9"], "Cannot train 9 pieces"),
    ):
        with pytest.raises(SystemExit, match=message):  # one line, no traceback
            train_tokenizer.main(arguments + mistake)
    with pytest.raises(SystemExit):
        train_tokenizer.main(["--dataset", "x/*.tar"])
    assert "--output: name the model file" in capsys.readouterr().err


# Mixtures, any number of processes, rot on disk.


def mixture_config(folder, **changes):
    sources = {
        "main": SourceConfig(weight=3, dataset="tiny/whole"),
        "other": SourceConfig(weight=1, dataset="tiny/whole", split="train[:10]", texts={"recaption": ""}),
    }
    return make_config(folder, mixture=sources, **changes)


def test_a_mixture_is_a_function_of_the_position(folder):
    config = mixture_config(folder, batch_size=32)
    whole = load(config, np.arange(32), stop=3)
    assert_same(whole[1:], load(config, np.arange(32), start=1, stop=3))
    sources, own = Mixture((3, 1), 0).locate(np.arange(96))
    first_ten = {int(record["id"]) for record in Records("tiny/whole", "train[:10]", folder).read(range(10))}
    for step, (arrays, _) in enumerate(whole):
        numbers = np.array(record_numbers(arrays[0]))
        names = ["tiny/whole", "train[:10]"]
        for row, number in enumerate(numbers):
            source, place = sources[step * 32 + row], int(own[step * 32 + row])
            records = Records(names[0], "train" if source == 0 else names[1], folder)
            index = record_index(place, len(records), 0, int(source))
            assert int(records[index]["id"]) == number
            if source == 1:  # no recaption: the AltText stands in, one sentence
                assert number in first_ten and arrays[4][row].max() == 0


def test_mixture_errors(folder):
    config = mixture_config(folder)
    config.data.mixture["other"] = SourceConfig(dataset="tiny/whole", texts={"recaption": "caption"})
    with pytest.raises(ConfigError, match=r"data\.mixture\.other\.texts\.recaption: .*no text 'caption'.*Map it with"):
        train_batches(config, np.arange(BATCH), 0, 1)
    config.data.mixture["other"] = SourceConfig(dataset="tiny/none")
    with pytest.raises(FileNotFoundError, match="tiny/none"):
        train_batches(config, np.arange(BATCH), 0, 1)


@pytest.mark.parametrize("kind", ["one", "mixture"])
def test_a_run_of_4_processes_goes_on_with_1_2_or_8(folder, kind):
    """Killed at step 2 of 6, it sees the batches it would have seen."""
    make = mixture_config if kind == "mixture" else make_config
    config = make(folder, batch_size=16)
    whole = load(config, np.arange(16), stop=6)

    def global_batches(processes, start, stop):
        slices = np.arange(16).reshape(processes, -1)
        loaded = [load(config, rows, start, stop) for rows in slices]
        return [
            [np.concatenate([part[step][0][leaf] for part in loaded]) for leaf in range(len(whole[0][0]))]
            for step in range(stop - start)
        ]

    begun = global_batches(4, 0, 2)
    for processes in (1, 2, 8):
        for (expected, _), found in zip(whole, begun + global_batches(processes, 2, 6), strict=True):
            for array, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(array, other)


def test_rot_on_disk_costs_only_what_rots(folder, tmp_path):
    """Bytes are flipped in the middle of a shard while the run goes on: those records are replaced, and counted."""
    shutil.copytree(f"{folder}/tiny", tmp_path / "tiny")
    config = make_config(str(tmp_path), batch_size=COUNT)
    config = dataclasses.replace(config, tokenizer=TokenizerConfig(f"{folder}/tokenizer.model"))
    [(before, _)] = load(config, np.arange(COUNT), stop=1)
    [path] = (tmp_path / "tiny/whole/1.0.0").glob("*array_record*")
    data = bytearray(path.read_bytes())
    for place in (2000, 5000):  # records come first in the file
        data[place : place + 10] = b"rotten...!"
    path.write_bytes(bytes(data))
    records = Records("tiny/whole", "train", str(tmp_path)).read_each(range(COUNT))
    lost = [number for number, record in enumerate(records) if isinstance(record, BadRecord)]
    assert 1 <= len(lost) <= 4
    [(after, stats)] = load(config, np.arange(COUNT), stop=1)
    assert stats["by_reason"] == {"record": len(lost)} and "tiny-train.array_record" in stats["examples"][0]
    rotten = [row for row in range(COUNT) if record_index(row, COUNT, 0) in lost]
    others = np.setdiff1d(np.arange(COUNT), rotten)
    np.testing.assert_array_equal(before[0][others], after[0][others])
    assert not set(record_numbers(after[0][rotten])) & set(np.array(record_numbers(before[0]))[rotten])
    for rows in np.array_split(np.arange(COUNT), 3):  # the same records stand in whatever the slices
        [(part, _)] = load(config, rows, stop=1)
        np.testing.assert_array_equal(part[0], after[0][rows])


def test_hardly_a_whole_record_stops_at_once(folder, monkeypatch):
    monkeypatch.setattr(pipeline, "_REPLACEMENT_ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match="2 records in a row of tiny/damaged"):
        load(make_config(folder, "tiny/damaged"), stop=20)
