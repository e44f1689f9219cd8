"""`--profile` leaves a trace of steps that ran, and nothing if it is not wanted.

In processes of their own: JAX's profiler crashed in one that had loaded TensorFlow, Beam and libtpu before.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from clips_jax.run.profiler import Profiler

folder, wanted, steps = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
profiler, double = Profiler(folder, 100, wanted), jax.jit(lambda x: 2 * x)
for step in range(101, 101 + steps):
    profiler.before(step)
    profiler.after(step, double(jnp.ones(4)))
profiler.close()
"""


@pytest.mark.parametrize(("wanted", "steps"), [(True, 12), (True, 5), (False, 12)])
def test_a_trace_is_written_once(tmp_path, wanted, steps):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(wanted), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == wanted
    assert ("tensorboard --logdir" in done.stdout) == wanted
