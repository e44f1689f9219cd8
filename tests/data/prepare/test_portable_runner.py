"""A whole run over Beam's job interface, which Flink's and Spark's job servers have too: the job, our functions and all
they need go to another process, and from there to workers in processes of their own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from tests.data.prepare.whole_run import run, times, without_time, write_input
from tests.faults.processes import free_port

ROOT = pathlib.Path(__file__).parents[3]  # where workers are to run: they import clips_jax


@contextlib.contextmanager
def running(log: pathlib.Path, says: str, *command: str):
    """Runs a module until the end of the block, with all that it starts; the block begins when `says` is in its log."""
    # The pool starts workers as `python`.
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=ROOT,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while says not in log.read_text():
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_job_server_and_remote_workers_give_the_same_set(tmp_path):
    (tmp_path / "in").mkdir()
    write_input(tmp_path / "in")
    expected = run(tmp_path / "in", tmp_path / "direct")
    jobs, workers = free_port(), free_port()
    server = ["apache_beam.runners.portability.local_job_service_main", f"--job_port={jobs}"]
    server += [f"--staging_dir={tmp_path}/staging"]
    pool = ["apache_beam.runners.worker.worker_pool_main", f"--service_port={workers}"]
    program = [sys.executable, "-m", "clips_jax.data.prepare", "tars", f"{tmp_path}/in/*.tar", "--recaptions"]
    program += [f"{tmp_path}/in/*.parquet", "--name=web", f"--data_dir={tmp_path}/portable"]
    program += ["--runner=PortableRunner", f"--job_endpoint=localhost:{jobs}"]
    program += ["--environment_type=EXTERNAL", f"--environment_config=localhost:{workers}"]
    with (
        running(tmp_path / "server.log", "Listening for beam jobs", *server),
        running(tmp_path / "pool.log", "Started worker pool", *pool),
    ):
        result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert result.returncode == 0, result.stderr
    assert "Starting worker" in (tmp_path / "pool.log").read_text()
    found = json.loads((tmp_path / "portable/web/1.0.0/manifest-train.json").read_text())
    assert without_time(found) == without_time(expected)
    # Another runner finds everything done.
    before = times(tmp_path / "portable")
    run(tmp_path / "in", tmp_path / "portable")
    assert before == times(tmp_path / "portable") and len(before) == 4
