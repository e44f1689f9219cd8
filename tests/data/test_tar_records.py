"""Tars read in place."""

import io
import pickle
import sys
import tarfile

import numpy as np
import pytest

from clips_jax.config import ConfigError
from clips_jax.data import tars
from clips_jax.data.file_patterns import expand_braces, list_files
from clips_jax.data.prepare.pictures import PictureOptions
from clips_jax.data.prepare.record import TextOptions, make_record
from clips_jax.data.prepare.tar_source import Tars
from clips_jax.data.triples import BadRecord, Records
from tests.data.make_tars import encoded, member, sample, write_tar


def index(path) -> tars.TarIndex:
    with open(path, "rb") as file:
        return tars.index_tar(file, path.stat().st_size)


def reasons(found: tars.TarIndex) -> list[tuple[str, str]]:
    return [(rejected.key, rejected.reason) for rejected in found.rejected]


def test_records_of_tars(tmp_path):
    for shard in range(3):
        samples = (sample(f"{shard:05d}{i:04d}", 10 * shard + i, re_caption=f"Long {i}. Longer.") for i in range(4))
        write_tar(tmp_path / f"{shard:05d}.tar", [part for parts in samples for part in parts])
    records = Records(str(tmp_path / "{00000..00002}.tar"), "train")
    assert len(records) == 12
    assert records.text_features == (
        "alt_text",
        "caption",
        "id",
        "key",
        "re_caption",
        "recaption",
        "sha256",
        "uid",
        "url",
    )
    assert set(records.features) == {*records.text_features, "image", "width", "height"}
    last, first = records.read([11, 0])
    assert (last["id"], last["alt_text"], last["recaption"]) == ("000020003", "picture 23", "Long 3. Longer.")
    assert last["image"] == encoded(seed=23) and first["image"] == encoded(seed=0) and first["width"] == 60
    again = pickle.loads(pickle.dumps(records))
    assert again[11] == last
    assert len(Records(str(tmp_path / "*.tar"), "train[25%:50%]")) == 3
    assert len(Records(str(tmp_path / "*.tar"), "train[min(1000,25%):]")) == 9
    assert Records(str(tmp_path / "*.tar"), "train[25%:50%]")[0]["id"] == "000000003"
    with pytest.raises(IndexError):
        records[12]
    with pytest.raises(ConfigError, match="one split"):
        Records(str(tmp_path / "*.tar"), "test")
    with pytest.raises(FileNotFoundError, match="00003.tar"):
        Records(str(tmp_path / "{00002..00003}.tar"), "train")


def test_texts_wherever_they_are(tmp_path):
    """In parts as webdataset names them, and in JSON with a byte order mark or in UTF-16."""
    picture = encoded()
    write_tar(
        tmp_path / "a.tar",
        [
            *[("a.jpeg", picture), ("a.caption", b"in a part"), ("a.json", b'{"caption": "in the JSON"}')],
            *[("b.jpg", picture), ("b.txt", b" "), ("b.text", b"two"), ("b.recaption", b"Long.")],
            *[("c.jpg", picture), ("c.json", b'\xef\xbb\xbf{"alt_text": ["", "listed"], "re_caption": "Longer."}')],
            *[("d.jpg", picture), ("d.json", '{"title": "ü"}'.encode("utf-16"))],
        ],
    )
    records = Records(str(tmp_path / "a.tar"), "train")
    source = Tars(str(tmp_path))
    rows = source.rows(source.tasks("")[0][0], "")
    prepared = [make_record(row, TextOptions(), PictureOptions())[0] for row in rows]
    assert [(record["alt_text"], record["recaption"]) for record in prepared] == [
        (record["alt_text"], record["recaption"]) for record in records.read(range(4))
    ]
    assert [(record["alt_text"], record["recaption"]) for record in prepared] == [
        ("in a part", ""),
        ("two", "Long."),
        ("listed", "Longer."),
        ("ü", ""),
    ]


def test_a_tar_that_changes_gives_bad_records(tmp_path):
    path = tmp_path / "a.tar"
    deep = [("3.jpg", encoded()), ("3.json", b"[" * 100_000)]
    write_tar(path, [("2.jpg", encoded()), ("2.json", b"[1, 2]")] + sample("1", 1, captions=["a", "b "]) + deep)
    records = Records(str(path), "train")
    assert records[1]["captions"] == ["a", "b"] and "captions" in records.text_features
    with pytest.raises(BadRecord, match="sample 2: a JSON list, not an object"):
        records.read([1, 0])
    with pytest.raises(BadRecord, match="sample 3: nested too deeply"):
        records.read([2])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BadRecord, match="sample 1: .* cut short"):
        records[1]


def test_samples_are_found_whatever_the_order_and_the_names(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(
        path,
        [
            member("deep", type=tarfile.DIRTYPE),
            ("deep/er/1.JPG", b"a"),
            ("2.txt", b"two"),
            ("./3.webp", b"c"),
            ("2.PNG", b"b"),
            ("deep/er/1.txt", b"one"),
            ("ключ.jpg", b"d"),
            (".DS_Store", b"x"),
        ],
    )
    found = index(path)
    assert [(sample.key, sample.picture, sorted(sample.parts)) for sample in found.samples] == [
        ("deep/er/1", "jpg", ["jpg", "txt"]),
        ("2", "png", ["png", "txt"]),
        ("3", "webp", ["webp"]),
        ("ключ", "jpg", ["jpg"]),
    ]
    assert reasons(found) == [(".DS_Store", "not_a_sample")]


def test_names_with_dots(tmp_path):
    """Each picture is a sample, or a part of one that has another; none is lost behind a key that it shares."""
    path = tmp_path / "a.tar"
    names = ["img.1.jpg", "img.2.jpg", "photo.v1.JPG", "photo.v1.txt", "photo.v2.jpg", "photo.v2.txt", "www.a.b.jpg"]
    names += ["e.caption.txt", "e.image.jpg", "k.input.jpg", "k.txt", "j.seg.png", "j.jpg", "j.txt", "x.jpg"]
    names += ["x.jpg.json", "d.1/y.png", "d.1/y.cls", "two.left.jpg", "two.right.jpg", "two.json", "alone.seg.npy"]
    write_tar(path, [(name, name.encode()) for name in names])
    found = index(path)
    data = path.read_bytes()
    samples = {one.key: {p: data[o : o + n].decode() for p, (o, n) in one.parts.items()} for one in found.samples}
    assert samples == {
        "img.1": {"jpg": "img.1.jpg"},
        "img.2": {"jpg": "img.2.jpg"},
        "photo.v1": {"jpg": "photo.v1.JPG", "txt": "photo.v1.txt"},
        "photo.v2": {"jpg": "photo.v2.jpg", "txt": "photo.v2.txt"},
        "www.a.b": {"jpg": "www.a.b.jpg"},
        "e": {"jpg": "e.image.jpg", "txt": "e.caption.txt"},
        "k": {"jpg": "k.input.jpg", "txt": "k.txt"},
        "j": {"seg.png": "j.seg.png", "jpg": "j.jpg", "txt": "j.txt"},
        "x": {"jpg": "x.jpg", "json": "x.jpg.json"},
        "d.1/y": {"png": "d.1/y.png", "cls": "d.1/y.cls"},
        "two.left": {"jpg": "two.left.jpg"},
        "two.right": {"jpg": "two.right.jpg"},
    }
    assert reasons(found) == [("two", "no_picture"), ("alone.seg", "no_picture")]


def test_links_devices_and_unsafe_paths_are_left_out(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(
        path,
        [
            ("/etc/0.jpg", b"x"),
            ("../../1.jpg", b"x"),
            ("a/../../2.jpg", b"x"),
            ("C:\\3.jpg", b"x"),
            member("4.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("5.jpg", type=tarfile.LNKTYPE, linkname="ok.jpg"),
            member("6.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            member("7.jpg", type=tarfile.FIFOTYPE),
            ("ok.jpg", b"x"),
        ],
    )
    found = index(path)
    assert [sample.key for sample in found.samples] == ["ok"]
    assert [reason for _, reason in reasons(found)] == ["unsafe_path"] * 4 + ["link"] * 2 + ["not_a_file"] * 2


def test_repeated_keys(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, sample("0", 0) + sample("1", 1) + sample("0", 2) + sample("0", 3))
    found = index(path)
    assert reasons(found) == [("0", "duplicate_key")] * 2
    offset, size = found.samples[0].parts["jpg"]
    assert path.read_bytes()[offset : offset + size] == encoded(seed=0)


def test_damaged_tars(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, sample("0", 0) + sample("1", 1) + sample("2", 2))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = {info.name: info.offset for info in tar}
        data = {info.offset: info.size for info in tar.getmembers()}
    kept = {}
    for end in range(0, len(whole), 256):  # wherever the writer was killed
        path.write_bytes(whole[:end])
        found = index(path)
        keys = [sample.key for sample in found.samples]
        assert keys == ["0", "1", "2"][: len(keys)]
        inside = any(info < end < info + 512 + size for info, size in data.items() if info + 512 <= end)
        assert ({reason for _, reason in reasons(found)} == {"truncated_tar"}) >= inside
        assert all(len(part.parts) == 3 for part in found.samples[1:])  # the first one cannot be compared
        if end in headers.values() or found.rejected:
            kept[end] = len(keys)
        for part in found.samples:
            for offset, size in part.parts.values():
                assert offset + size <= end
    assert set(kept.values()) >= {0, 1, 2}
    # At the border of two members nothing tells damage from an end but the missing end marker.
    path.write_bytes(whole[: headers["2.jpg"]])
    found = index(path)
    assert (len(found.samples), found.rejected, found.has_end) == (2, [], False)
    # A header overwritten in the middle: only the sample that lost a part is gone.
    for name in headers:
        broken = bytearray(whole)
        broken[headers[name] : headers[name] + 512] = b"\xff" * 512
        path.write_bytes(broken)
        found = index(path)
        assert [sample.key for sample in found.samples] == sorted({"0", "1", "2"} - {name[0]})
        assert reasons(found) == [(name[0], "damaged_tar")]
    for content in (b"", b"not a tar", b"\xff" * 5000):
        path.write_bytes(content)
        assert reasons(index(path)) == [("", "unreadable_tar")]


def test_tars_that_go_on_behind_their_end(tmp_path):
    """`cat a.tar b.tar`, and what else may follow the end marker."""
    path, other = tmp_path / "a.tar", tmp_path / "b.tar"
    write_tar(path, sample("0", 0) + sample("1", 1))
    write_tar(other, sample("2", 2) + sample("3", 3))
    first = path.read_bytes()
    path.write_bytes(first + other.read_bytes())
    found = index(path)
    assert ([sample.key for sample in found.samples], found.rejected) == (["0", "1", "2", "3"], [])
    offset, size = found.samples[3].parts["jpg"]
    assert path.read_bytes()[offset : offset + size] == encoded(seed=3)
    path.write_bytes(first + b"something else" * 200)
    found = index(path)
    assert len(found.samples) == 2 and reasons(found) == [("", "damaged_tar")]
    path.write_bytes(first + bytes(3 << 20))
    assert (len(index(path).samples), index(path).rejected) == (2, [])


def test_no_bytes_crash_the_index(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("я" * 60 + ".jpg", "b" * 150 + ".txt"):
            tar.addfile(member(name, 700), io.BytesIO(bytes(700)))
    whole = file.getvalue()
    rng = np.random.default_rng(0)
    for _ in range(1500):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(256)
        found = tars.index_tar(io.BytesIO(damaged), len(damaged))
        assert found.samples or found.rejected or not found.has_end


def test_file_patterns(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.io.filesystems", None)  # its import takes seconds in each worker
    assert list(expand_braces("a{08..10}/{x,y}.tar")) == [f"a{n}/{c}.tar" for n in ("08", "09", "10") for c in "xy"]
    assert list(expand_braces("a{b}c")) == ["a{b}c"]
    with pytest.raises(FileNotFoundError, match="folder without any .tar"):
        list_files(str(tmp_path), (".tar",))
    assert list_files([__file__, __file__], ()) == [__file__]
    for name in ("b.tar", "a.TAR", "c.txt"):
        (tmp_path / name).touch()
    assert list_files(str(tmp_path), (".tar",)) == [str(tmp_path / "a.TAR"), str(tmp_path / "b.tar")]
    assert list_files(str(tmp_path / "[bc].*"), (".tar",)) == [str(tmp_path / "b.tar"), str(tmp_path / "c.txt")]
