"""Rows from tars, tables, COCO captions and prepared sets, good and bad ones."""

import base64
import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from clips_jax.data.prepare import coco_source, tar_source
from clips_jax.data.prepare.coco_source import Coco
from clips_jax.data.prepare.pictures import PictureOptions, Refused
from clips_jax.data.prepare.record import TextOptions, make_record
from clips_jax.data.prepare.rows import Row
from clips_jax.data.prepare.table_source import Table
from clips_jax.data.prepare.tar_source import Tars
from clips_jax.data.tars import Rejected
from tests.data.make_tars import encoded, sample, write_tar


def rows(source, work="work"):
    tasks, planned = source.tasks(str(work))
    return [*planned, *(row for task in tasks for row in source.rows(task, str(work)))]


def rejects(found) -> list[tuple[str, str]]:
    return [(row.key, row.reason) for row in found if isinstance(row, Rejected)]


def keys(found) -> list[str]:
    return [row.key for row in found if isinstance(row, Row)]


def test_tars(tmp_path):
    write_tar(tmp_path / "0.tar", sample("a", 1) + [("list.jpg", encoded()), ("list.json", b"[1]")])
    (tmp_path / "1.tar").touch()
    write_tar(
        tmp_path / "2.tar",
        [
            ("b.JPG", encoded()),
            ("b.txt", b"\xff latin"),
            ("deep.jpg", encoded()),
            ("deep.json", b"[" * 100_000),
            ("number.jpg", encoded()),
            ("number.json", b'{"n": ' + b"9" * 10_000 + b"}"),
        ],
    )
    found = rows(Tars(str(tmp_path)))
    assert keys(found) == ["a", "b"]
    assert rejects(found) == [
        ("list", "bad_json"),
        ("", "unreadable_tar"),
        ("deep", "bad_json"),
        ("number", "bad_json"),
    ]
    good = next(row for row in found if isinstance(row, Row))
    assert good.picture == encoded(seed=1) and good.extension == "jpg" and good.fields["txt"] == b"picture 1"


@pytest.mark.parametrize(("mode", "ending"), [("w:gz", "tar.gz"), ("w:bz2", "tgz"), ("w:xz", "tar.xz")])
def test_packed_tars_whole_and_cut(tmp_path, mode, ending):
    path = tmp_path / f"a.{ending}"
    write_tar(path, [part for i in range(4) for part in sample(str(i), i)], mode)
    assert keys(rows(Tars(str(path)), tmp_path / "work")) == ["0", "1", "2", "3"]
    path.write_bytes(path.read_bytes()[:-500])
    found = rows(Tars(str(path)), tmp_path / "work")
    assert len(keys(found)) < 4 and len(rejects(found)) == 1
    assert {reason for _, reason in rejects(found)} <= {"truncated_tar", "damaged_tar", "unreadable_tar"}
    assert not any(name for _, _, names in os.walk(tmp_path / "work") for name in names)


def test_a_packed_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_source, "_MAX_UNPACKED", 2)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    assert rejects(rows(Tars(str(tmp_path / "bomb.tar.gz")), tmp_path / "work")) == [("", "damaged_tar")]


def test_large_parts_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_source, "MAX_PART_BYTES", 1000)
    write_tar(tmp_path / "a.tar", [("a.jpg", encoded()), ("a.json", b" " * 1001)])
    assert rejects(rows(Tars(str(tmp_path)))) == [("a", "part_too_large")]


def test_table_of_paths_that_lead_anywhere(tmp_path):
    pictures, outside = tmp_path / "pictures", tmp_path / "outside"
    pictures.mkdir()
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(encoded())
    (pictures / "ok.JPG").write_bytes(encoded(seed=1))
    (pictures / "犬.jpg").write_bytes(encoded(seed=2))
    (pictures / "folder.jpg").mkdir()
    (pictures / "link.jpg").symlink_to(outside / "secret.jpg")
    (pictures / "inside.jpg").symlink_to("ok.JPG")
    (pictures / "away").symlink_to(outside)
    (pictures / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(pictures / "pipe.jpg")
    (pictures / "large.jpg").write_bytes(bytes(3000))
    wanted = {
        "ok.JPG": "",
        "犬.jpg": "",
        "./folder.jpg/../ok.JPG": "",
        "inside.jpg": "",
        str(pictures / "ok.JPG"): "",
        "../outside/secret.jpg": "unsafe_path",
        str(outside / "secret.jpg"): "unsafe_path",
        "/etc/passwd": "unsafe_path",
        "link.jpg": "unsafe_path",
        "away/secret.jpg": "unsafe_path",
        "nul\0.jpg": "unsafe_path",
        "loop.jpg": "missing_picture",
        "absent.jpg": "missing_picture",
        "ok.JPG/x": "missing_picture",
        "folder.jpg": "missing_picture",
        "pipe.jpg": "missing_picture",
        "x" * 5000: "missing_picture",
        "large.jpg": "picture_file_too_large",
    }
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps({"image": path, "caption": "c"}) + "\n" for path in wanted))
    found = rows(Table(str(table), str(pictures), max_bytes=2500))
    assert [row.reason if isinstance(row, Rejected) else "" for row in found] == list(wanted.values())


def test_csv(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    text = 'id,path,caption\n1,a.png,"two\nlines"\n2,a.png\n\n1,a.png,again\n3,,none\n4,a.png,' + "x" * 200_000 + "\n"
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"5,a.png,caf\xe9\n6,a.png,too,many\n")
    found = rows(Table(str(tmp_path / "t.csv"), rows_per_shard=2))
    assert keys(found) == ["1", "1", "4", "5"]  # keys that come again in another shard are counted later
    assert rejects(found) == [("t-1", "bad_row"), ("3", "no_picture"), ("t-6", "bad_row")]
    captions = [row.fields["caption"] for row in found if isinstance(row, Row)]
    assert captions[0] == "two\nlines" and len(captions[2]) == 200_000
    record, notes = make_record(next(row for row in found if row.key == "5"), TextOptions(), PictureOptions())
    assert record["alt_text"] == "caf\ufffd" and "alt_text.invalid_utf8" in notes
    assert rejects(rows(Table(str(tmp_path / "t.csv")))) == [
        ("t-1", "bad_row"),
        ("1", "duplicate_key"),
        ("3", "no_picture"),
        ("t-6", "bad_row"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf"path","caption"\r\n"a.png","one"\r\n"sub\\a.png","two\r\nlines"\r\n',  # Excel's UTF-8
        'Path,CAPTION\na.png,one\n sub/a.png ,"two\nlines"\n'.encode("utf-16"),
        b'path;caption\ra.png;one\rsub/a.png;"two\rlines"\r',
        b'path\tcaption\na.png\tone\nsub/a.png\t"two\nlines"',
    ],
)
def test_csv_as_programs_write_it(tmp_path, content):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    (tmp_path / "t.csv").write_bytes(content)
    found = [make_record(row, TextOptions(), PictureOptions())[0] for row in rows(Table(str(tmp_path / "t.csv")))]
    assert [record["alt_text"] for record in found] == ["one", "two\nlines"]


def test_a_quote_that_nothing_closes_is_no_row(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "t.csv").write_text('path,caption\na.png,one\na.png,"two\na.png,three\na.png,four\n')
    found = rows(Table(str(tmp_path / "t.csv")))
    assert keys(found) == ["t-0"] and found[1].detail == (
        "line 3: a quote that is closed nowhere; everything to line 5 is in it"
    )


def test_columns_that_are_not_there(tmp_path):
    (tmp_path / "t.csv").write_text("picture,caption\na.png,one\n")
    pyarrow.parquet.write_table(pyarrow.table({"picture": ["a.png"]}), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        path = str(tmp_path / name)
        with pytest.raises(ValueError, match="name one of picture"):
            Table(path).tasks("")
        with pytest.raises(ValueError, match="--key_column number: no such column in .*; it has picture"):
            Table(path, image_column="Picture", key_column="number").tasks("")
        assert len(Table(path, image_column="Picture").tasks("")[0]) == 1
        with pytest.raises(FileNotFoundError, match="no such folder"):
            Table(path, str(tmp_path / "absent"), "picture").tasks("")


def test_json_lines(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    lines = [
        b'\xef\xbb\xbf{"file_name": "a.jpg", "text": NaN, "title": "t"}',
        b"[1]",
        b"{",
        b"",
        b'{"file_name": 3}',
        b"\xff",
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    found = rows(Table(str(tmp_path / "t.jsonl")))
    assert [(type(row).__name__, row.key) for row in found] == [
        ("Row", "t-0"),
        *(("Rejected", f"t-{number}") for number in range(1, 5)),
    ]
    assert make_record(found[0], TextOptions(), PictureOptions())[0]["alt_text"] == "t"


def test_parquet(tmp_path):
    captions = ["a", None, "c", float("nan"), "e"]
    struct = [{"bytes": encoded(seed=i), "path": f"{i}.jpg"} for i in range(4)] + [None]
    table = pyarrow.table(
        {
            "image": struct,
            "caption": pyarrow.array([None if c != c else c for c in captions]),
            "rewrites": [["x", "", "y"], [], None, ["z"], []],
            "score": [1.5, None, 2.0, 3.0, 4.0],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    source = Table(str(tmp_path), rows_per_shard=3)
    found = rows(source)
    assert [task.start for task in source.tasks("")[0]] == [0, 3]
    assert keys(found) == ["t-0", "t-1", "t-2", "t-3"] and rejects(found) == [("t-4", "no_picture")]
    assert [row.picture for row in found[:4]] == [encoded(seed=i) for i in range(4)]
    texts = TextOptions(texts=("score",), text_lists=("rewrites",))
    record, notes = make_record(found[0], texts, PictureOptions())
    assert (record["rewrites"], record["score"]) == (["x", "y"], "1.5") and "score.number_as_text" in notes
    with pytest.raises(Refused) as error:
        make_record(found[1], texts, PictureOptions())
    assert error.value.reason == "no_text"


def test_parquet_strings_that_are_not_utf8(tmp_path):
    bad = pyarrow.array([b"fine", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    (tmp_path / "a.jpg").write_bytes(encoded())
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg"] * 2, "text": bad}), tmp_path / "t.parquet")
    found = rows(Table(str(tmp_path / "t.parquet")))
    texts = [make_record(row, TextOptions(), PictureOptions())[0]["alt_text"] for row in found]
    assert texts == ["fine", "caf\ufffd"]


def coco(tmp_path, **changes) -> Coco:
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 5, "image_id": 7, "caption": "second"},
            {"id": 2, "image_id": 7, "caption": "first"},
            {"id": 9, "image_id": 3, "caption": " spaced  out "},
            {"id": 10, "image_id": 3, "caption": None},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps({**content, **changes}))
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(encoded(seed=ord(name)))
    return Coco(str(tmp_path / "c.json"), str(tmp_path))


def test_coco(tmp_path):
    found = rows(coco(tmp_path), tmp_path / "work")
    assert keys(found) == ["3", "7"]
    texts = TextOptions(text_lists=("captions",))
    records = [make_record(row, texts, PictureOptions())[0] for row in found]
    assert [record["captions"] for record in records] == [["spaced out"], ["first", "second"]]
    assert [record["alt_text"] for record in records] == ["spaced out", "first"]
    assert records[1]["image"] == encoded(seed=ord("b"))


def test_bad_coco(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": 2}, 5, {"id": 4, "file_name": 4}]
    images += [
        {"id": 6, "file_name": "../../etc/passwd"},
        {"id": "x", "file_name": "b.jpg"},
        {"id": [], "file_name": ""},
    ]
    annotations = [{"image_id": 99, "caption": "?"}, "text", {"image_id": [1]}, {"image_id": "x", "caption": "yes"}]
    found = rows(coco(tmp_path, images=images, annotations=annotations), tmp_path / "work")
    assert keys(found) == ["1", "x"]
    reasons = [reason for _, reason in rejects(found)]
    assert sorted(reasons) == ["bad_row"] * 4 + ["duplicate_key"] + ["no_such_image"] * 3 + ["unsafe_path"]
    for content in (b"{}", b"[]", b"nonsense", b"\xff", b'{"images": 1, "annotations": []}'):
        with pytest.raises(ValueError, match="c.json is no COCO captions file"):
            coco_source.read_annotations(content, "c.json")


def test_join_values():
    digest = "AB" * 32
    assert tar_source.join_value("sha256", "k", {"sha256": digest}, None) == digest.lower()
    assert tar_source.join_value("uid", "k", {"uid": " Ab "}, None) == "Ab"
    assert tar_source.join_value("key", "k", {"key": "other"}, None) == "k"
    assert tar_source.join_value("uid", "k", {}, b"x") == ""
    assert tar_source.join_value("uid", "k", {"uid": "a\udce9"}, None).encode() == b"a?"
    assert tar_source.normal_join_value(bytes(range(250, 256)) * 5) == (bytes(range(250, 256)) * 5).hex()
    assert tar_source.normal_join_value("0123ABCD-4567-89ab-cdef-0123456789ab") == "0123abcd456789abcdef0123456789ab"
    assert [tar_source.normal_join_value(value) for value in (b"ab ", 12, 12.0, 1.5)] == ["ab", "12", "12", "1.5"]
    assert len(base64.b16decode(tar_source.join_value("sha256", "k", {"sha256": None}, b"x").upper())) == 32
