"""`--profile` leaves a trace of steps that ran, and nothing if it is not wanted."""

import jax
import jax.numpy as jnp
import pytest

from clips_jax.run.profiler import Profiler


@pytest.mark.parametrize("steps", [12, 5])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_trace_is_written_once(tmp_path, wanted, steps, capsys):
    profiler, double = Profiler(str(tmp_path), 100, wanted), jax.jit(lambda x: 2 * x)
    for step in range(101, 101 + steps):
        profiler.before(step)
        profiler.after(step, double(jnp.ones(4)))
    profiler.close()
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == wanted
    assert ("tensorboard --logdir" in capsys.readouterr().out) == wanted
