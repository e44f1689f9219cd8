"""A few faults on real processes; `python -m tests.faults.run` does it at length."""

import pytest

from tests.faults.injection import Fault
from tests.faults.processes import differences, largest_difference, metrics, started
from tests.faults.run import torture

STEPS = 24


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, emoji_data_dir):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with started(workdir, emoji_data_dir, flags=[f"--config.total_samples={12 * STEPS}"]) as processes:
        assert processes.wait() == [0], processes.output()
    return workdir


def survive(workdir, data_dir, counts, *kinds):
    """`kinds` in turn, each three steps on; the first while the step compiles."""
    faults = iter([Fault(kind, after=3 if i else 0, delay=0.1, victim=0.99) for i, kind in enumerate(kinds)])
    outcomes = torture(workdir, data_dir, counts, faults, STEPS)
    assert [outcome.fault.kind for outcome in outcomes] == list(kinds)
    for outcome in outcomes:
        assert not outcome.error, outcome.error
    return outcomes


def test_one_process_ends_bit_for_bit_as_undisturbed(undisturbed, emoji_data_dir, tmp_path):
    kinds = ["SIGTERM", "kill during a save", "disk full", "pause, short", "SIGTERM twice"]
    outcomes = survive(tmp_path / "run", emoji_data_dir, [1], *kinds)
    assert differences(tmp_path / "run", undisturbed) == []
    assert outcomes[0].lost == outcomes[-1].lost == 0  # a notice in time costs no step
    assert outcomes[1].lost <= 6  # what is not saved yet: one interval, and the save that was under way


def test_more_and_fewer_processes_and_other_meshes_end_alike(undisturbed, emoji_data_dir, tmp_path):
    """1 process, 3 of which one hangs, 2 that share parameters and of which one is killed, 1 to the end."""
    outcomes = survive(tmp_path / "run", emoji_data_dir, [1, 3, 2], "SIGTERM", "pause, long", "kill")
    assert [outcome.processes for outcome in outcomes] == [1, 3, 2]
    assert outcomes[1].ended < 60  # limits.silence = 10
    assert largest_difference(tmp_path / "run", undisturbed) == []
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, STEPS + 1))
    stacks = [path.read_text() for path in (tmp_path / "run").glob("stacks-process-*.txt")]
    assert any("in run" in text and "loop.py" in text for text in stacks)


def test_a_process_that_never_comes_is_named(emoji_data_dir, tmp_path):
    flags = ["--config.limits.join=5"]
    with started(tmp_path / "run", emoji_data_dir, 2, flags, absent=[1]) as processes:
        assert processes.wait(120) == [75]
    assert "limits.join = 5" in processes.output() and "missing: process-1." in processes.output()
