"""`python -m clips_jax.embed` on folders, tars and text files as people have them."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clips_jax.embed import BadInput, main, read_texts
from clips_jax.pretrained import load
from tests.interop.test_import import FIXTURES

NAMES = ["a.PNG", "b.jpeg", "sub/deep/c.webp", "sub/d.JPG", "z.gif"]


def picture(seed, kind):
    pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for seed, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, {"jpg": "JPEG"}.get(kind := name.split(".")[1].lower(), kind.upper())))
    (folder / "broken.jpg").write_bytes(picture(1, "JPEG")[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def embed(tmp_path, name, *arguments):
    main(["--model", FIXTURES, "--out", str(tmp_path / name), *map(str, arguments)])
    return tmp_path / name


def test_rows_are_the_readable_pictures_in_the_order_of_their_names(pictures, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the red car\n\nA Caf\u00e9 &amp; cat", encoding="utf-8")
    with np.load(embed(tmp_path, "all.npz", "--images", pictures, "--texts", tmp_path / "texts.txt")) as file:
        found = dict(file)
    assert found["image_names"].tolist() == sorted(NAMES)
    assert found["bad_images"].tolist() == ["broken.jpg", "empty.png"]
    assert found["texts"].tolist() == ["the red car", "", "A Caf\u00e9 &amp; cat"]
    model = load(FIXTURES, exact=True)
    files = [(pictures / name).read_bytes() for name in sorted(NAMES)]
    pixels = np.stack([model.preprocessing.pixels(data) for data in files])
    np.testing.assert_allclose(
        found["image_embeddings"], model.encoder.images(lambda rows: pixels[list(rows)], 5), atol=1e-6
    )
    np.testing.assert_allclose(found["text_embeddings"], model.encoder.texts(found["texts"].tolist()), atol=1e-6)
    assert np.array_equal(found["token_ids"], model.encoder.token_ids(found["texts"].tolist()))
    np.testing.assert_allclose(np.linalg.norm(found["image_embeddings"], axis=1), 1, atol=1e-6)
    output = capsys.readouterr()
    assert "2 pictures could not be read" in output.out and "broken.jpg" in output.err and ".txt 1" in output.err


def test_parquet_grows_by_chunks_and_holds_the_same(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("clips_jax.embed.CHUNK_BATCHES", 1)
    (tmp_path / "texts.jsonl").write_text('"the cat"\n{"text": "a car"}\n{"caption": "b"}\n')
    arguments = ("--images", pictures, "--texts", tmp_path / "texts.jsonl", "--batch_size", 2)
    table = pq.read_table(embed(tmp_path, "all.parquet", *arguments)).to_pydict()
    with np.load(embed(tmp_path, "all.npz", *arguments)) as file:
        images = [row for kind, row in zip(table["kind"], table["embedding"], strict=True) if kind == "image"]
        np.testing.assert_array_equal(np.array(images, np.float32), file["image_embeddings"])
        assert table["kind"] == 5 * ["image"] + 2 * ["bad_image"] + 3 * ["text"]
        assert table["name"][:5] == file["image_names"].tolist()
        assert table["token_ids"][-3:] == file["token_ids"].tolist()


def test_tars_give_their_keys_in_order(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:02d}.tar", "w") as tar:
            for i in range(3):
                data = picture(3 * shard + i, "PNG")
                info = tarfile.TarInfo(f"{shard}{i}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for name in (tmp_path / "{00..01}.tar", tmp_path):
        with np.load(embed(tmp_path, "tars.npz", "--images", name)) as file:
            assert file["image_names"].tolist() == ["00", "01", "02", "10", "11", "12"]


def test_several_devices_give_the_same(pictures, tmp_path):
    code = "import sys; from clips_jax.embed import main; main(sys.argv[1:])"
    arguments = ["--model", FIXTURES, "--images", str(pictures), "--batch_size", "2", "--out"]
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", code, *arguments, str(tmp_path / "4.npz")], env=environment, check=True)
    with np.load(tmp_path / "4.npz") as four, np.load(embed(tmp_path, "1.npz", "--images", pictures)) as one:
        np.testing.assert_allclose(four["image_embeddings"], one["image_embeddings"], atol=1e-6)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.jsonl", b'"a"\n{"url": "b"}\n', "line 2"),
        ("x.jsonl", b'"a"\n\n', "line 2"),
        ("x.txt", b"a\n\xff\xfe\n", "not UTF-8"),
        ("x.csv", b"a", ".jsonl"),
    ],
)
def test_bad_text_files_are_named_with_the_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_texts(str(tmp_path / name))


def test_text_lines_keep_their_order_and_empty_ones(tmp_path):
    (tmp_path / "x.txt").write_bytes("\ufeffone\r\n\ntwo\u2028still two\nthree".encode())
    assert read_texts(str(tmp_path / "x.txt")) == ["one", "", "two\u2028still two", "three"]
    (tmp_path / "x.jsonl").write_text(json.dumps("a\nb") + "\n")
    assert read_texts(str(tmp_path / "x.jsonl")) == ["a\nb"]


def test_nothing_is_left_behind_when_no_picture_can_be_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no")
    for ending in ("npz", "parquet"):
        with pytest.raises(SystemExit, match=r"none of the 1 pictures.*a\.jpg"):
            embed(tmp_path, f"out.{ending}", "--images", tmp_path / "in")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
