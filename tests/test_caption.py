"""Recaptions as a table: nothing lost, nothing twice, what was finished is kept."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from clips_jax import caption
from clips_jax.config import ConfigError
from clips_jax.data.pictures import Pictures, decoded_chunks
from clips_jax.decoding import Decoding
from clips_jax.growing_table import GrowingTable
from tests.data.make_tars import encoded, sample, write_tar
from tests.small_pretrained import pretrained

COUNT = 11  # divides by no batch size used here


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """11 pictures, two of them bad, five with a text beside them; and files that are none."""
    path = tmp_path_factory.mktemp("pictures")
    (path / "inner").mkdir()
    for i in range(COUNT):
        name = path / ("inner" if i % 2 else ".") / f"p{i:02}.png"
        name.write_bytes(encoded("PNG", seed=i) if i not in (3, 10) else b"no picture" * (i == 3))
        if i % 2:
            name.with_suffix(".txt").write_text(f"a small thing of the cat {i}\n")
    (path / "notes.md").write_text("not a picture")
    return str(path)


@pytest.fixture
def run(monkeypatch):
    """The command, with a tiny model."""

    def call(*arguments: str, kind: str = "teacher_forced") -> None:
        monkeypatch.setattr(caption, "load", lambda path, **options: pretrained(kind))
        caption.main([*arguments, "--model", "tiny", "--batch_size", "4"])

    return call


def rows_of(path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_readable_picture_is_in_the_table_once(folder, tmp_path, run, capsys):
    out = tmp_path / "out.jsonl"
    run(folder, "--out", str(out))
    rows = rows_of(out)
    assert [row["key"] for row in rows] == [f"inner/p{i:02}" for i in (1, 5, 7, 9)] + [
        f"p{i:02}" for i in (0, 2, 4, 6, 8)
    ]
    assert {row["alt_text"] for row in rows[:4]} == {f"a small thing of the cat {i}" for i in (1, 5, 7, 9)}
    assert all(row["alt_text"] == "" for row in rows[4:]) and len({row["sha256"] for row in rows}) == 9
    assert [row["image"] for row in rows_of(f"{out}.bad.jsonl")] == [f"{folder}/inner/p03.png", f"{folder}/p10.png"]
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.bad.jsonl"]
    said = capsys.readouterr()
    assert "9 recaptions" in said.out and "5 pictures had no AltText" in said.err
    # The same one by one: batches and the filling of the last one change nothing.
    encoder, pictures = pretrained().encoder, Pictures([folder])
    for row in rows[::4]:
        position = pictures.names.index(row["image"])
        pixels = encoder.preprocessing.pixels(pictures.read([position])[0]["image"])
        alone = encoder.captions(lambda indices, x=pixels: np.stack([x] * len(indices)), 1, [row["alt_text"]])
        assert alone == [row["re_caption"]]
    assert len({row["re_caption"] for row in rows}) > 1


def test_a_killed_run_goes_on(folder, tmp_path, run, monkeypatch):
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    options = ["--strategy", "nucleus", "--seed", "3"]
    run(folder, "--out", str(whole), *options)
    add, calls = GrowingTable.add, []

    def dies(self, rows):
        if len(calls) == 1:
            with open(self.partial, "ab") as file:
                file.write(b'{"key": "torn')  # a line that was being written
            raise KeyboardInterrupt
        calls.append(len(rows))
        add(self, rows)

    monkeypatch.setattr(GrowingTable, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "--out", str(killed), *options)
    assert not killed.exists()
    monkeypatch.setattr(GrowingTable, "add", add)
    with pytest.raises(SystemExit, match="other settings"):
        run(folder, "--out", str(killed), "--alt", "another")
    run(folder, "--out", str(killed), *options)
    assert pq.read_table(killed).to_pylist() == pq.read_table(whole).to_pylist()
    with pytest.raises(SystemExit, match="already there"):
        run(folder, "--out", str(killed), *options)


def test_tars_and_a_table_of_alt_texts(tmp_path, run, capsys):
    shards = [
        write_tar(tmp_path / f"{s}.tar", sum((sample(f"{s}{i}", 3 * s + i) for i in range(3)), [])) for s in (0, 1)
    ]
    pattern = str(tmp_path / "{0..1}.tar")
    run(pattern, "--out", str(tmp_path / "a.jsonl"))
    rows = rows_of(tmp_path / "a.jsonl")
    assert [row["key"] for row in rows] == ["00", "01", "02", "10", "11", "12"] and len(shards) == 2
    assert [row["alt_text"] for row in rows] == [f"picture {i}" for i in range(6)]
    with open(tmp_path / "alt.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("key", "alt_text"), ("01", "the red dog"), ("12", 'a "large" cat, blue')])
    run(pattern, "--out", str(tmp_path / "b.jsonl"), "--alt_csv", str(tmp_path / "alt.csv"))
    given = {row["key"]: row["alt_text"] for row in rows_of(tmp_path / "b.jsonl")}
    assert given == {"00": "", "01": "the red dog", "02": "", "10": "", "11": "", "12": 'a "large" cat, blue'}
    capsys.readouterr()
    run(pattern, "--alt", "a cat")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6 and printed[0].startswith(f"{tmp_path}/0.tar#00: ")


def test_what_a_model_cannot_do_is_said(folder, tmp_path, run):
    with pytest.raises(SystemExit, match="no captioner"):
        run(folder, kind="")
    with pytest.raises(SystemExit, match="one pass"):
        run(folder, "--strategy", "beam", kind="learnable")
    run(f"{folder}/p00.png", kind="learnable")
    with pytest.raises(SystemExit, match="no such picture"):
        run(f"{folder}/p77.png")
    with pytest.raises(SystemExit, match=r"\.jsonl or \.parquet"):
        run(folder, "--out", str(tmp_path / "out.csv"))
    with pytest.raises(SystemExit, match="none of the pictures"):
        run(f"{folder}/p10.png")
    with pytest.raises(ConfigError, match="alt_text"):
        (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
        caption.read_alt_csv(str(tmp_path / "bad.csv"))


def test_chunks_are_whole_and_in_order(folder):
    pictures = Pictures([folder])
    chunks = list(decoded_chunks(pictures, pretrained().preprocessing, 4, start=1))
    assert [chunk.start for chunk in chunks] == [1, 5, 9] and [len(chunk.records) for chunk in chunks] == [4, 4, 2]
    assert [error != "" for chunk in chunks for error in chunk.errors].count(True) == 2
    for chunk in chunks:
        for i, record in enumerate(chunk.records):
            assert record["id"] == pictures.read([chunk.start + i])[0]["id"]


def test_nothing_depends_on_the_batch_size():
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    texts = ["a red cat", "", "the large dog on a thing", "blue", "a", "small round picture", "green"]

    def load(rows):
        return images[list(rows)]

    decoding = Decoding("beam", beams=2)
    four, seven = (pretrained(batch_size=size).encoder.captions(load, 7, texts, decoding) for size in (4, 256))
    assert four == seven and len(set(four)) > 1
    embedded = [pretrained(batch_size=size).encoder.images(load, 7) for size in (4, 256)]
    np.testing.assert_allclose(embedded[0], embedded[1], atol=2e-6)
    assert embedded[0].shape == (7, 24)
