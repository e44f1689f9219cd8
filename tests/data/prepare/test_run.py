"""Whole runs: from tars to a data set that TFDS reads, with its manifest; restarts; workers; the command line."""

import json
import logging
import os
import pathlib
import shutil
import tempfile
import threading

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from clips_jax.data.prepare import __main__ as command
from clips_jax.data.prepare import lost_workers, shard
from clips_jax.data.prepare.builder import TripleBuilder
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.tar_source import Tars
from clips_jax.data.triples import Records
from tests.data.make_tars import encoded, sample, write_tar
from tests.data.prepare.whole_run import run, times, without_time, write_input


def test_run_restart_and_workers(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("clips_jax.data.prepare.run._SMALL_BYTES", 0)  # so that two workers are two
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_input(folder)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    manifest = run(folder, output)
    rejected = {name: (entry["count"], entry["examples"]) for name, entry in manifest["rejected"].items()}
    assert rejected == {
        "damaged_picture": (2, ["09", "19"]),
        "link": (1, ["link.jpg"]),
        "unreadable_tar": (1, []),
    }
    assert (manifest["rows_in"], manifest["rows_out"], manifest["rejected_rows"]) == (18, 14, 4)
    # 12 samples of which the even ones are in the table, 2 truncated and 2 others that are not.
    assert (manifest["joined_rows"], manifest["join_rate"]) == (6, 6 / 16)
    assert manifest["normalised"]["alt_text.bytes_repr"] == {"count": 1, "examples": ["again"]}
    assert manifest["normalised"]["picture.wrong_extension"] == {"count": 1, "examples": ["00"]}
    assert manifest["duplicate_images"] == {"count": 1, "examples": ["again"]}
    assert manifest["duplicate_keys"] == {"count": 1, "examples": ["00"]}
    listed = [json.loads(line) for line in (output / "web/1.0.0/rejected-train.jsonl").read_text().splitlines()]
    assert [(entry["key"], entry["reason"]) for entry in listed] == [
        ("09", "damaged_picture"),
        ("link.jpg", "link"),
        ("19", "damaged_picture"),
        ("", "unreadable_tar"),
    ]
    assert listed[3]["input"] == str(folder / "3.tar")
    assert sorted(os.listdir(tmp_path)) == ["in", "out", "tmp"]
    assert not os.listdir(temporary) and not list(output.rglob("*tmp*"))

    records = Records("web", "train", str(output))
    assert records.features == ("alt_text", "id", "image", "recaption") and len(records) == 14
    assert [records[i]["recaption"] for i in (2, 3)] == ["Long text 2. It goes on.", ""]  # the first of two rows for 2
    assert records[0]["image"] == encoded(seed=0)
    by_id = {record["id"]: record for record in records.read(range(14))}
    assert by_id["again"]["alt_text"] == "®" and by_id["21"]["alt_text"] == "picture 21"

    # Nothing is done twice.
    before = times(output)
    assert len(before) == 4
    assert without_time(run(folder, output)) == without_time(manifest) and times(output) == before
    # What a killed worker leaves is removed; a shard whose note is missing, or whose input changed, is made again.
    (output / "web/1.0.0/web-train.array_record-00000-of-00004.incomplete-12").touch()
    (output / "web/1.0.0/work/train/00000-of-00004.done.json").unlink()
    (output / "web/1.0.0/work/train/duplicates.json").unlink()
    write_tar(folder / "2.tar", sample("20", 20))
    changed = run(folder, output)
    after = times(output)
    assert [name for name in before if after[name] != before[name]] == sorted(before)[0:3:2] and len(after) == 4
    assert (changed["rows_out"], changed["duplicate_images"]["count"]) == (9, 0) and changed["hash"] != manifest["hash"]
    # Worker processes, another folder, other order of arrival: the same set.
    assert without_time(run(folder, tmp_path / "two", workers=2)) == without_time(changed)
    # An option that changes records changes all shards.
    smaller = run(folder, output, "--shorter_side", "20")
    assert all(times(output)[name] != after[name] for name in after)
    assert smaller["normalised"]["picture.reduced"]["count"] == 9 and smaller["hash"] != changed["hash"]
    assert "hash " + smaller["hash"] in capfd.readouterr().out


def join(folder, tables: list[dict], *flags: str) -> list[str] | str:
    """The recaptions that tables give the tar in `folder`, or what the command says instead."""
    for number, columns in enumerate(tables):
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet")
    arguments = ["tars", f"{folder}/0.tar", "--recaptions", f"{folder}/*.parquet", "--name", "web", *flags]
    if command.main([*arguments, "--data_dir", str(folder / "out"), "--workers", "1"]):
        return ""
    records = Records("web", "train", str(folder / "out"))
    return [record["recaption"] for record in records.read(range(len(records)))]


def test_joins_with_tables_as_they_are(tmp_path, capfd, monkeypatch):
    """Keys that pandas made numbers, hashes that are bytes, rows without a text before one that has it."""
    monkeypatch.setattr("clips_jax.data.prepare.join._PARTITION_BYTES", 100)  # several partitions
    write_tar(tmp_path / "0.tar", sample("000000000", 0) + sample("000000012", 12))
    texts = ["Zero.", "Twelve."]
    assert join(tmp_path, [{"key": [0, 12], "re_caption": texts}], "--join_on", "key") == texts
    assert join(tmp_path, [{"key": [12.0, None], "re_caption": texts}], "--join_on", "key") == ["", "Zero."]
    hashes = [number.to_bytes(32, "big") for number in (0, 12)]
    table = {"sha256": [*hashes, hashes[1], hashes[1]], "re_caption": ["Zero.", None, "Twelve.", "Again."]}
    assert join(tmp_path, [table]) == texts
    assert "join.several_rows         1" in capfd.readouterr().out
    assert join(
        tmp_path, [{"uid": ["0" * 8 + "-0000" * 3 + f"-{12:012x}"], "re_caption": ["x"]}], "--join_on", "uid"
    ) == [
        "",
        "x",
    ]
    assert join(tmp_path, [{"sha256": ["other"], "re_caption": ["x"]}]) == ["", ""]
    said = f"NOTHING WAS JOINED: the samples' sha256 are such as {0:064}, {12:064x}, those of the table's column sha256"
    assert f"{said} are such as other." in capfd.readouterr().out
    assert not join(tmp_path, [table, {"hash": ["x"], "re_caption": ["x"]}])
    assert "no such column in" in capfd.readouterr().err
    (tmp_path / "1.parquet").write_text("no parquet")
    assert not join(tmp_path, [table])
    assert "1.parquet is no parquet file" in capfd.readouterr().err


def test_other_splits_and_smaller_copies(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_input(folder)
    output = ["--data_dir", str(tmp_path / "out"), "--workers", "1"]
    assert command.main(["tars", f"{folder}/0.tar", "--name", "web", *output]) == 0
    assert command.main(["tars", f"{folder}/1.tar", "--name", "web", "--split", "val", *output]) == 0
    builder = tfds.builder_from_directory(str(tmp_path / "out/web/1.0.0"))
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 4, "val": 4}
    assert command.main(["tars", f"{folder}/1.tar", "--name", "web", "--split", "x", "--texts", "url", *output]) == 2
    assert command.main(["prepared", "web", "--name", "small", "--split", "val", "--shorter_side", "24", *output]) == 0
    rotten = tmp_path / "rotten/web"
    shutil.copytree(tmp_path / "out/web", rotten)
    (shard_file,) = rotten.glob("1.0.0/web-val*")
    shard_file.write_bytes(shard_file.read_bytes()[:-100])
    arguments = ["prepared", "web", "--from_dir", str(rotten.parent), "--name", "less", "--split", "val", *output]
    assert command.main(arguments) == 1  # all of the split's only shard, but none stops the run
    manifest = json.loads((tmp_path / "out/less/1.0.0/manifest-val.json").read_text())
    assert manifest["rejected"]["damaged_record"]["count"] == manifest["rows_in"] == 4
    shard_file.unlink()
    assert command.main(arguments) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "out/web").rglob("*") if path.is_file()}
    assert command.main(["prepared", "web", "--name", "web", "--split", "val", "--shorter_side", "24", *output]) == 2
    assert before == {path: path.read_bytes() for path in (tmp_path / "out/web").rglob("*") if path.is_file()}
    large, small = (Records(name, "val", str(tmp_path / "out")) for name in ("web", "small"))
    assert len(small) == len(large) == 4 and len(small[0]["image"]) < len(large[0]["image"])
    assert [{**record, "image": b""} for record in small.read(range(4))] == [
        {**record, "image": b""} for record in large.read(range(4))
    ]


def test_a_shard_that_stops_halfway_is_no_shard(tmp_path, monkeypatch):
    write_input(tmp_path)
    plan = Plan("web", "1.0.0", "train", str(tmp_path / "out"), Tars(str(tmp_path)))
    (task, *others), _ = plan.source.tasks(plan.work)
    real, calls = shard.record_hash, []

    def fails_at_the_third(record):
        calls.append(record)
        if len(calls) == 3:
            raise OSError("disk full")
        return real(record)

    monkeypatch.setattr(shard, "record_hash", fails_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        shard.make_shard(plan, task, 4)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert shard.done(plan, task, 4) is None
    monkeypatch.undo()
    assert shard.make_shard(plan, task, 4)["rows_out"] == 4
    assert shard.done(plan, task, 4) and not shard.done(plan, others[0], 4)
    (tmp_path / "out" / plan.shard_name(0, 4)).unlink()
    assert shard.done(plan, task, 4) is None


def test_lost_workers_end_the_run(monkeypatch):
    monkeypatch.setattr(lost_workers, "SECONDS_FOR_BEAM", 0.1)
    log = logging.getLogger("apache_beam.runners.worker.data_plane")
    with pytest.raises(RuntimeError, match="lost its worker processes"), lost_workers.no_endless_wait():
        log.error("Failed to read inputs in the data plane.")
        threading.Event().wait(20)  # what Beam does
    with lost_workers.no_endless_wait():
        log.error("Failed to read inputs in the data plane.")  # but Beam goes on, or raises
    threading.Event().wait(0.3)


def test_nothing_usable_is_said(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.txt", b"y")])
    flags = ["--name", "none", "--data_dir", str(tmp_path / "out"), "--workers", "1"]
    write_tar(tmp_path / "b.tar", sample("b", 1))
    assert command.main(["tars", str(tmp_path / "b.tar"), *flags, "--texts", "url,titel"]) == 0
    out = capsys.readouterr().out
    assert "NO RECORD HAS A TEXT IN titel" in out and "IN recaption" in out and "IN url" not in out
    assert command.main(["tars", str(tmp_path / "a.tar"), *flags]) == 1
    said = "none of 1 rows gave a record: 1 not_a_picture; such as a: 1 bytes that begin with b'x'"
    assert said in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out/none/1.0.0/manifest-train.json").read_text())
    assert manifest["rejected"] == {"not_a_picture": {"count": 1, "examples": ["a"]}}
    assert not (tmp_path / "out/none/1.0.0/dataset_info.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tars", "absent.tar", "--name", "x"], "absent.tar: no such file"),
        (["tars", "absent/*.tar", "--name", "x"], "no file matches"),
        (["tars", "{here}", "--name", "Bad-Name"], "lower case"),
        (["tars", "{here}", "--name", "coco"], "a well-known set"),
        (["tars", "{here}", "--name", "emoji"], "call yours otherwise"),
        (["tars", "{here}", "--name", "x", "--version", "1"], "three numbers"),
        (["tars", "{here}", "--name", "x", "--split", "../x"], "--split"),
        (["tars", "{here}", "--name", "x", "--texts", "image"], "none of"),
        (["tars", "{here}", "--name", "x", "--shorter", "9"], "--shorter 9: no such option"),
        (["prepared", "absent", "--name", "x"], "not prepared in"),
        (["tars", "{here}", "--name", "x", "--runner", "Nobody"], "Unexpected pipeline runner: Nobody"),
        (["tars", "{here}", "--name", "x", "--card", "{here}"], "no README.md"),
        (["tars", "{here}/0.tar", "--name", "x", "--data_dir", "{here}/0.tar"], "cannot be made"),
        (["coco", "{here}/0.tar", "--images", ".", "--name", "x"], "no COCO captions file"),
        (
            ["tars", "{here}", "--name", "x", "--recaptions", "{here}/recaptions.parquet", "--join_on", "uid"],
            "sha256, re_",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, message):
    write_input(tmp_path)
    arguments = [argument.replace("{here}", str(tmp_path)) for argument in arguments]
    arguments += [] if "--data_dir" in arguments else ["--data_dir", str(tmp_path / "out")]
    assert command.main([*arguments, "--workers", "1"]) == 2
    assert message in capsys.readouterr().err


class WebPictures(TripleBuilder):
    """A user's builder."""

    VERSION = "2.0.0"
    pkg_dir_path = pathlib.Path("/set/by/the/test")

    def sources(self, download_dir):
        return {"train": Tars(os.environ["TEST_TARS"])}


def test_builder_and_card(tmp_path, monkeypatch):
    write_input(tmp_path)
    (tmp_path / "README.md").write_text("What it is.")
    (tmp_path / "CITATIONS.bib").write_text("@misc{it}")
    monkeypatch.setenv("TEST_TARS", str(tmp_path / "0.tar"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    from etils import epath

    monkeypatch.setattr(WebPictures, "pkg_dir_path", epath.Path(tmp_path))
    builder = WebPictures(data_dir=tmp_path / "out")
    builder.download_and_prepare()
    again = tfds.builder("web_pictures", data_dir=tmp_path / "out")
    assert (again.info.description, again.info.citation) == ("What it is.", "@misc{it}")
    source = tfds.data_source("web_pictures", split="train", data_dir=tmp_path / "out")
    assert len(source) == 4 and source[0]["image"].shape == (40, 60, 3)
    assert len(builder.as_data_source("train")) == 4
