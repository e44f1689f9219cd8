"""One run per workdir; a restart is never kept out by the dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from clips_jax.run import lock
from clips_jax.run.lock import LOCK_FILE, WorkdirInUse, WorkdirNotWritable, workdir_lock

HOLD = """
import sys, time
from clips_jax.run.lock import workdir_lock
with workdir_lock(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(60)
"""


def ignore(reason: str) -> None:
    raise AssertionError(reason)


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks, such as an object store: the lease is used."""
    monkeypatch.setattr(lock, "_flock", lambda path: None)


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    with workdir_lock(str(tmp_path), ignore):
        with pytest.raises(WorkdirInUse, match=rf"another run writes here, on .*, process {os.getpid()}\. Stop it"):
            with workdir_lock(str(tmp_path), ignore):
                pass
    with workdir_lock(str(tmp_path), ignore):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(WorkdirInUse, match=f"process {holder.pid}"):
        with workdir_lock(str(tmp_path), ignore):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workdir_lock(str(tmp_path), ignore):
        pass


def test_a_lease_that_is_renewed_refuses_one_that_stands_still_is_taken_over(tmp_path, no_flock):
    elsewhere = {"host": "elsewhere", "pid": 1, "owner": "a"}
    alive = threading.Event()

    def renew() -> None:
        number = 0
        while not alive.wait(0.05):
            number += 1
            (tmp_path / LOCK_FILE).write_text(json.dumps(elsewhere | {"renewed": number}))

    (tmp_path / LOCK_FILE).write_text(json.dumps(elsewhere))
    renewer = threading.Thread(target=renew)
    renewer.start()
    with pytest.raises(WorkdirInUse, match="on elsewhere, process 1"):
        with workdir_lock(str(tmp_path), ignore, lease=4.0):  # the first renewal that it sees is enough
            pass
    alive.set()
    renewer.join()
    with workdir_lock(str(tmp_path), ignore, lease=0.2):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lease_of_a_dead_process_of_this_host_is_taken_at_once(tmp_path, no_flock):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock._me() | {"pid": dead.pid, "owner": "a"}))
    start = time.monotonic()
    with workdir_lock(str(tmp_path), ignore, lease=4.0):
        assert time.monotonic() - start < 3 * 4.0  # it was not waited for


def test_a_run_whose_lease_was_taken_over_is_told(tmp_path, no_flock):
    told = threading.Event()
    with workdir_lock(str(tmp_path), lambda reason: told.set(), lease=0.2):
        for _ in range(100):  # a renewal may just have been under way
            (tmp_path / LOCK_FILE).write_text(json.dumps({"host": "elsewhere", "pid": 1, "owner": "a"}))
            if told.wait(0.5):
                break
        assert told.is_set()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["owner"] == "a"  # not ours to remove


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WorkdirNotWritable, match=f"{path} cannot be written: .*or use another --workdir"):
            with workdir_lock(str(path), ignore):
                pass
