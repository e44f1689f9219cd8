"""Data workers do not outlive a run that is killed: after twenty restarts they would fill the memory."""

import multiprocessing
import subprocess
import sys
import time

from clips_jax.data.worker import serve


def work() -> None:
    serve()
    print("serving", flush=True)
    time.sleep(600)


def test_a_worker_ends_with_the_process_that_it_works_for():
    master = subprocess.Popen([sys.executable, "-m", "tests.data.test_worker"], stdout=subprocess.PIPE, text=True)
    assert master.stdout and master.stdout.readline() == "serving\n"
    master.kill()
    master.wait()
    output, _ = master.communicate(timeout=60)  # comes back once nobody has the pipe open
    assert output == ""


if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start()
    worker.join()
