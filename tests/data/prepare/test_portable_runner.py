"""A whole run over Beam's job interface, which Flink's and Spark's job servers have too: the job, our functions and all
they need go to another process, and from there to workers in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys
import time

from tests.data.prepare.test_run import run, times, without_time, write_input
from tests.faults.processes import free_port

ROOT = pathlib.Path(__file__).parents[3]  # where workers are to run: they import clips_jax


def start(folder: pathlib.Path, module: str, port_option: str) -> tuple[subprocess.Popen, int]:
    port = free_port()
    # The pool starts workers as `python`.
    environment = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(folder / f"{port_option}.log", "w") as log:
        command = [sys.executable, "-m", module, f"--{port_option}={port}"]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log), port


def test_a_job_server_and_remote_workers_give_the_same_set(tmp_path):
    (tmp_path / "in").mkdir()
    write_input(tmp_path / "in")
    expected = run(tmp_path / "in", tmp_path / "direct")
    server, job_port = start(tmp_path, "apache_beam.runners.portability.local_job_service_main", "job_port")
    pool, pool_port = start(tmp_path, "apache_beam.runners.worker.worker_pool_main", "service_port")
    try:
        deadline = time.monotonic() + 120
        logs = {"job_port": "Listening for beam jobs", "service_port": "Started worker pool"}
        while not all(text in (tmp_path / f"{name}.log").read_text() for name, text in logs.items()):
            assert time.monotonic() < deadline and server.poll() is None and pool.poll() is None
            time.sleep(0.2)
        program = [sys.executable, "-m", "clips_jax.data.prepare", "tars", f"{tmp_path}/in/*.tar", "--recaptions"]
        program += [f"{tmp_path}/in/*.parquet", "--name=web", f"--data_dir={tmp_path}/portable"]
        program += ["--runner=PortableRunner", f"--job_endpoint=localhost:{job_port}"]
        program += ["--environment_type=EXTERNAL", f"--environment_config=localhost:{pool_port}"]
        for _ in range(2):  # the second run finds everything done
            before = times(tmp_path / "portable")
            result = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
            assert result.returncode == 0, result.stderr
        assert before == times(tmp_path / "portable") and len(before) == 4
        assert "Starting worker" in (tmp_path / "service_port.log").read_text()
    finally:
        for process in (server, pool):
            process.kill()
            process.wait()
    found = json.loads((tmp_path / "portable/web/1.0.0/manifest-train.json").read_text())
    assert without_time(found) == without_time(expected)
