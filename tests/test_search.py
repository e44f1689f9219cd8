"""The index holds what the pictures are now, and the page lets nothing else out."""

import http.client
import io
import json
import os
import threading

import faiss
import numpy as np
import pytest
from PIL import Image

from clips_jax.config import ConfigError
from clips_jax.data.pictures import Pictures
from clips_jax.search import __main__ as command
from clips_jax.search.index import PictureIndex, fingerprint, make_index
from clips_jax.search.server import make_server
from tests.data.make_tars import encoded, sample, write_tar
from tests.small_pretrained import pretrained


@pytest.fixture
def folder(tmp_path):
    """9 pictures, one of them bad."""
    path = tmp_path / "pictures"
    path.mkdir()
    for i in range(9):
        (path / f"p{i}.png").write_bytes(encoded("PNG", seed=i) if i != 4 else b"bad")
    return path


def embed(data: bytes) -> np.ndarray:
    return command.embed_picture(pretrained(), data)


def test_search_is_exact_and_the_file_is_mapped(folder, tmp_path):
    tar = write_tar(tmp_path / "0.tar", sum((sample(f"t{i}", 20 + i) for i in range(3)), []))
    made = make_index(str(tmp_path / "index"), [str(folder), tar], pretrained(), 4)
    assert (made.total, made.embedded, made.bad) == (11, 12, 1)
    index = PictureIndex(str(tmp_path / "index"))
    assert index.bad.keys() == {str(folder / "p4.png")} and index.names[-1] == f"{tar}#t2"
    with open("/proc/self/maps") as maps:
        assert index.meta["vectors"] in maps.read()
    vectors = np.stack([index.embedding(i) for i in range(11)])
    for number, name in enumerate(index.names[:8]):
        with open(name, "rb") as file:
            np.testing.assert_allclose(vectors[number], embed(file.read()), atol=2e-6)
    query = pretrained().encoder.texts(["a red cat"])[0]
    found = index.search(query, 20)
    expected = vectors @ query
    assert [number for number, _ in found] == np.argsort(-expected).tolist()
    np.testing.assert_allclose([score for _, score in found], np.sort(expected)[::-1], atol=1e-6)
    assert isinstance(faiss.read_index(str(tmp_path / "index" / index.meta["vectors"])), faiss.IndexFlat)


def test_only_what_changed_is_embedded_again(folder, tmp_path):
    at = str(tmp_path / "index")
    make_index(at, [str(folder)], pretrained(), 4)
    before = PictureIndex(at)
    assert make_index(at, [str(folder)], pretrained(), 4).embedded == 0
    (folder / "p9.png").write_bytes(encoded("PNG", seed=9))
    (folder / "p0.png").unlink()
    (folder / "p1.png").write_bytes(encoded("PNG", seed=77, quality=3) + b" ")
    changes = before.changes(Pictures([str(folder)]))
    assert (changes.new, changes.changed, changes.gone) == (1, 1, 1) and str(changes) == "1 new, 1 changed, 1 gone"
    made = make_index(at, [str(folder)], pretrained(), 4)
    assert (made.total, made.embedded, made.bad) == (8, 2, 1)
    after = PictureIndex(at)
    for number, name in enumerate(after.names):
        with open(name, "rb") as file:
            np.testing.assert_allclose(after.embedding(number), embed(file.read()), atol=2e-6)
    assert sorted(os.listdir(at)) == sorted(["index.json", after.meta["vectors"], after.meta["pictures"]])
    assert make_index(at, [str(folder)], pretrained(seed=1), 4).embedded == 9  # another model: all of them


def test_shards_that_repeat_keys_keep_their_pictures_apart_and_a_new_shard_is_all_that_is_embedded(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):  # "0" and "1" in both, other pictures
        write_tar(shards / f"{shard}.tar", sum((sample(f"{i}", 10 * shard + i) for i in range(2)), []))
    at = str(tmp_path / "index")
    assert make_index(at, [str(shards)], pretrained(), 4).total == 4
    index, pictures = PictureIndex(at), Pictures([str(shards)])
    assert index.names == [f"{shards}/{shard}.tar#{i}" for shard in range(2) for i in range(2)] == pictures.names
    for number in range(4):
        np.testing.assert_allclose(index.embedding(number), embed(pictures.read([number])[0]["image"]), atol=2e-6)
    write_tar(shards / "2.tar", sample("0", 20))
    made = make_index(at, [str(shards)], pretrained(), 4)
    assert (made.total, made.embedded) == (5, 1)


def test_the_command_notices_another_model_and_changed_pictures(folder, tmp_path, monkeypatch, capsys):
    at = str(tmp_path / "index")
    monkeypatch.setattr(command, "load", lambda path, **options: pretrained())
    command.main(["index", str(folder), "--model", "tiny", "--index", at])
    assert "8 pictures" in capsys.readouterr().out
    command.main(["query", at, "a red cat", "-n", "3", "--json"])
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3 and "warning" not in said.err
    command.main(["query", at, "--picture", str(folder / "p5.png"), "-n", "1"])
    assert (
        capsys.readouterr().out.startswith(" 1.000")
        and fingerprint(pretrained()) == PictureIndex(at).meta["fingerprint"]
    )
    (folder / "p5.png").unlink()
    command.main(["query", at, "cat"])
    assert "1 gone" in capsys.readouterr().err
    monkeypatch.setattr(command, "load", lambda path, **options: pretrained(seed=1))
    with pytest.raises(SystemExit, match="another model"):
        command.main(["query", at, "cat"])
    with pytest.raises(SystemExit, match="no index there"):
        command.main(["query", str(tmp_path), "cat"])
    with pytest.raises(SystemExit, match="one of them"):
        command.main(["query", at])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"bad")
    with pytest.raises(ConfigError, match="none of the 1 pictures"):
        make_index(str(tmp_path / "other"), [str(tmp_path / "bad")], pretrained(), 4)


def test_an_index_remembers_how_its_models_positions_are_held(folder, tmp_path, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append(options["positions"])
        return pretrained()

    monkeypatch.setattr(command, "load", load)
    at = str(tmp_path / "index")
    command.main(["index", str(folder), "--model", "tiny", "--index", at, "--positions", "learned"])
    command.main(["query", at, "a red cat"])
    assert asked == ["learned", "learned"]


@pytest.fixture
def ask(folder, tmp_path):
    """Requests to a running server: (status, headers, body)."""
    make_index(str(tmp_path / "index"), [str(folder)], pretrained(), 4)
    index = PictureIndex(str(tmp_path / "index"))
    encoder = pretrained().encoder
    server = make_server(
        index, Pictures(index.meta["paths"]), lambda text: encoder.texts([text])[0], embed, ["a warning"], port=0
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def request(path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()

    yield request
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_page_and_its_answers(ask, folder):
    status, headers, body = ask("/")
    assert status == 200 and b"By picture" in body and "default-src 'none'" in headers["Content-Security-Policy"]
    about = json.loads(ask("/status")[2])
    assert about["pictures"] == 8 and about["unreadable"] == 1 and about["warnings"] == ["a warning"]
    first = json.loads(ask("/search?count=3")[2])["results"]
    assert [row["id"] for row in first] == [0, 1, 2] and first[0]["score"] is None
    by_text = json.loads(ask("/search?text=a%20red%20cat")[2])["results"]
    assert len(by_text) == 8 and by_text == sorted(by_text, key=lambda row: -row["score"])
    like = json.loads(ask("/search?like=6")[2])["results"]
    assert like[0]["id"] == 6 and like[0]["score"] == pytest.approx(1, abs=1e-5)
    data = (folder / "p7.png").read_bytes()
    uploaded = json.loads(ask("/search?count=1", "POST", data)[2])["results"]
    assert uploaded[0]["name"].endswith("p7.png") and uploaded[0]["score"] == pytest.approx(1, abs=1e-5)
    status, headers, body = ask("/thumbnail/0")
    assert headers["Content-Type"] == "image/jpeg" and Image.open(io.BytesIO(body)).size == (60, 40)
    status, headers, body = ask("/picture/0")
    assert headers["Content-Type"] == "image/png" and body == (folder / "p0.png").read_bytes()


def test_nothing_else_is_let_out(ask):
    paths = ["/thumbnail/8", "/thumbnail/-1", "/picture/..%2f..%2fetc%2fpasswd", "/picture/../../etc/passwd"]
    paths += ["/etc/passwd", "/thumbnail/0/../../x", "/search?like=x", "/search?like=99", "/search?count=x"]
    for path in [*paths, "/picture/1e3"]:
        status, _, body = ask(path)
        assert status in (400, 404) and "error" in json.loads(body) and b"root:" not in body, path


def test_uploads_and_other_hosts_are_refused(ask):
    assert ask("/search", "POST", b"no picture")[0] == 400
    assert ask("/search", "POST", b"")[0] == 413
    assert ask("/status", "POST", b"x")[0] == 404
    assert ask("/search", "POST", b"x", **{"Content-Length": str(1 << 40)})[0] == 413
    assert ask("/status", Host="evil.example")[0] == 403
    assert ask("/status", Host="localhost:1")[0] == 200
