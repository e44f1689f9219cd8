"""A workdir in an object store: files are written whole, nothing grows, nothing needs a local path.

The store is a stand-in behind `epath`, in which an object cannot be appended to. Checkpoints are Orbax' and
TensorStore's, TensorBoard's files TensorFlow's: what these do with gs:// is not tested here.
"""

import json
import os
import threading

import clu.metric_writers
import jax
import pytest
from etils import epath
from etils.epath import backend, gpath
from jax.sharding import Mesh

from clips_jax.config import LimitsConfig, to_dict
from clips_jax.evaluators.results import write_results
from clips_jax.metrics import MetricWriter, read_metrics
from clips_jax.run import record, watchdog
from clips_jax.run.lock import WorkdirInUse, workdir_lock
from clips_jax.run.log_file import log_to_file
from tests import small

WORKDIR = "gs://bucket/run"


class Store(backend._OsPathBackend):
    """Objects as files of a local folder."""

    def __init__(self, folder: str):
        self.folder, self.written = folder, []

    def open(self, path, mode):
        assert mode.strip("b") in ("r", "w"), f"{path}: an object cannot be opened with mode {mode!r}"
        local = self.local(path)
        if "w" in mode:
            self.written.append(os.path.basename(path))
            os.makedirs(os.path.dirname(local), exist_ok=True)
        return super().open(local, mode)

    def local(self, path) -> str:
        assert str(path).startswith("gs://"), path
        return os.path.join(self.folder, str(path)[5:])


for name in ("exists", "isdir", "listdir", "rmtree", "remove", "stat"):
    setattr(Store, name, lambda self, path, name=name: getattr(backend._OsPathBackend, name)(self, self.local(path)))
for name in ("makedirs", "mkdir"):
    setattr(
        Store,
        name,
        lambda self, path, name=name, **more: getattr(backend._OsPathBackend, name)(self, self.local(path), **more),
    )
Store.replace = lambda self, path, to: os.replace(self.local(path), self.local(to))  # a copy and a deletion there


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what took "gs://…" for a local name would show up here
    objects = Store(str(tmp_path / "objects"))
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", objects)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(clu.metric_writers, "SummaryWriter", lambda folder: clu.metric_writers.MultiWriter([]))
    yield objects
    assert os.listdir(tmp_path) == ["objects"]


def test_metrics_are_written_whole_at_saves_and_cut_on_resume(store):
    writer = MetricWriter(WORKDIR, 0)
    for step in range(1, 7):
        writer.write(step, {"loss": 1.0})
        writer.flush(durable=step == 4)
    assert [row["step"] for row in read_metrics(WORKDIR)] == [1, 2, 3, 4]
    assert store.written.count("metrics.jsonl.tmp") == 2  # at the start and at the save
    writer.close()
    assert len(read_metrics(WORKDIR)) == 6
    MetricWriter(WORKDIR, 3).close()
    assert [row["step"] for row in read_metrics(WORKDIR)] == [1, 2, 3]


def test_the_lock_is_a_lease(store):
    with workdir_lock(WORKDIR, print, lease=0.5), log_to_file(WORKDIR):
        holder = json.loads((epath.Path(WORKDIR) / "lock.json").read_text())
        assert holder["pid"] == os.getpid()
        (epath.Path(WORKDIR) / "lock.json").write_text(json.dumps(holder | {"host": "elsewhere"}))
        with pytest.raises(WorkdirInUse):  # the first one goes on renewing it
            with workdir_lock(WORKDIR, print, lease=4.0):
                pass


def test_record_results_and_stacks(store, monkeypatch):
    config = small.config()
    mesh = Mesh([[[jax.devices()[0]]]], ("data", "fsdp", "tensor"))
    for step in (0, 4):
        record.write_record(WORKDIR, config, mesh, {"kind": "none"}, {"sha256": "0"}, step)
    folder = epath.Path(WORKDIR)
    assert [start["from_step"] for start in json.loads((folder / "run.json").read_text())["starts"]] == [0, 4]
    assert json.loads((folder / "config.json").read_text()) == to_dict(config)
    write_results(folder / "results.json", 4, 16, {"a": {"b": 1.0}})
    assert json.loads((folder / "results.json").read_text())["results"] == {"a": {"b": 1.0}}

    left = threading.Event()
    monkeypatch.setattr(watchdog.os, "_exit", lambda code: left.set())
    watch = watchdog.Watchdog(LimitsConfig(step=0.2), WORKDIR, process=1)
    watch.beat("step", "1")
    assert left.wait(60)
    watch.close()
    assert "test_record_results_and_stacks" in (folder / "stacks-process-1.txt").read_text()
