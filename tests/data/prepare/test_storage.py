"""Files on another file system than this machine's: a stand-in, in a folder, that Beam knows by its scheme."""

import json
import os

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from clips_jax.data.file_patterns import list_files
from clips_jax.data.prepare import shard, storage
from clips_jax.data.prepare.plan import Plan
from clips_jax.data.prepare.table_source import Table
from clips_jax.data.prepare.tar_source import Tars
from clips_jax.data.tars import Rejected
from tests.data.make_tars import encoded, sample, write_tar

_ROOT = {"folder": ""}


class Elsewhere(LocalFileSystem):
    """elsewhere://a/b is a/b in a folder of the test's."""

    @classmethod
    def scheme(cls):
        return "elsewhere"

    @staticmethod
    def _there(path: str) -> str:
        return path.replace("elsewhere://", _ROOT["folder"] + "/")

    def _list(self, dir_or_prefix):
        for found in super()._list(self._there(dir_or_prefix)):
            found.path = found.path.replace(_ROOT["folder"] + "/", "elsewhere://")
            yield found

    def _path_open(self, path, *args, **kwargs):
        os.makedirs(os.path.dirname(self._there(path)), exist_ok=True)
        return super()._path_open(self._there(path), *args, **kwargs)

    def metadata(self, path):
        found = super().metadata(self._there(path))
        found.path = path
        return found

    def exists(self, path):
        return super().exists(self._there(path))

    def rename(self, sources, targets):
        return super().rename(list(map(self._there, sources)), list(map(self._there, targets)))

    def delete(self, paths):
        return super().delete(list(map(self._there, paths)))


@pytest.fixture
def there(tmp_path):
    _ROOT["folder"] = str(tmp_path)
    (tmp_path / "bucket").mkdir()
    return tmp_path


def test_files(there):
    path = "elsewhere://bucket/a/b.json"
    assert storage.read_json(path) is None and not storage.exists(path)
    for value in ({"a": 1}, {"b": "ä"}):  # the second one replaces the first
        storage.write_json(path, value)
        assert storage.read_json(path) == value == json.loads((there / "bucket/a/b.json").read_text())
    assert storage.names("elsewhere://bucket/a") == ["b.json"]
    assert storage.state(path)[0] == (there / "bucket/a/b.json").stat().st_size
    with pytest.raises(ZeroDivisionError), storage.whole_file(path) as incomplete:
        open(incomplete, "w").close()
        raise ZeroDivisionError
    assert storage.read_json(path) == {"b": "ä"} and os.listdir(there / "bucket/a") == ["b.json"]
    storage.write_json(path, {"key": "caf\udce9"})
    assert storage.read_json(path) == {"key": "caf?"}
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)


def test_a_shard_from_elsewhere_to_elsewhere(there):
    for number in range(2):
        write_tar(there / f"bucket/{number}.tar", sample("a", number) + sample("b", 5))
    assert list_files("elsewhere://bucket/*.tar", (".tar",)) == ["elsewhere://bucket/0.tar", "elsewhere://bucket/1.tar"]
    plan = Plan("web", "1.0.0", "train", "elsewhere://bucket/out", Tars("elsewhere://bucket/*.tar"))
    tasks, _ = plan.source.tasks(plan.work)
    note = shard.make_shard(plan, tasks[1], 2)
    assert note["rows_out"] == 2 and shard.done(plan, tasks[1], 2) == note and shard.done(plan, tasks[0], 2) is None
    assert sorted(os.listdir(there / "bucket/out")) == ["web-train.array_record-00001-of-00002", "work"]
    local = Plan("web", "1.0.0", "train", str(there / "local"), Tars(str(there / "bucket/*.tar")))
    assert shard.make_shard(local, tasks[1], 2)["hash_sum"] == note["hash_sum"]


def test_a_table_elsewhere(there):
    (there / "bucket/a.jpg").write_bytes(encoded())
    paths = ["a.jpg", "../a.jpg", "elsewhere://bucket/a.jpg", "absent.jpg"]
    (there / "bucket/t.jsonl").write_text("".join(json.dumps({"image": path}) + "\n" for path in paths))
    source = Table("elsewhere://bucket/t.jsonl", "elsewhere://bucket")
    (task,), _ = source.tasks("")
    found = [row.reason if isinstance(row, Rejected) else row.picture for row in source.rows(task, "")]
    assert found == [encoded(), "unsafe_path", "unsafe_path", "missing_picture"]
