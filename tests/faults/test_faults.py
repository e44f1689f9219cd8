"""A few faults on real processes; `python -m tests.faults.run` does it at length."""

import pytest

from tests.faults.config import BATCH
from tests.faults.injection import Fault
from tests.faults.processes import differences, largest_difference, metrics, started
from tests.faults.run import torture

STEPS = 15


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, emoji_data_dir):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    with started(workdir, emoji_data_dir, flags=[f"--config.total_samples={BATCH * STEPS}"]) as processes:
        assert processes.wait() == [0], processes.output()
    return workdir


def survive(workdir, data_dir, counts, *faults):
    """`faults`: (kind, steps later) in turn; 0 steps after a start is while the step compiles."""
    given = [Fault(kind, after, delay=0.1, victim=0.99) for kind, after in faults]
    outcomes = torture(workdir, data_dir, counts, iter(given), STEPS)
    assert [outcome.fault for outcome in outcomes] == given
    for outcome in outcomes:
        assert not outcome.error, outcome.error
    return outcomes


def test_one_process_ends_bit_for_bit_as_undisturbed(undisturbed, emoji_data_dir, tmp_path):
    faults = [("SIGTERM twice", 0), ("kill during a save", 2), ("pause, short", 1), ("disk full", 1)]
    outcomes = survive(tmp_path / "run", emoji_data_dir, [1], *faults)
    assert differences(tmp_path / "run", undisturbed) == []
    assert outcomes[0].lost == 0  # a notice in time costs no step
    assert outcomes[1].lost <= 6  # what is not saved yet: one interval, and the save that was under way


def test_two_processes_of_which_one_hangs_then_one_on_another_mesh(undisturbed, emoji_data_dir, tmp_path):
    (outcome,) = survive(tmp_path / "run", emoji_data_dir, [2, 1], ("pause, long", 4))
    assert outcome.processes == 2 and outcome.ended < 90  # limits.silence = 10
    assert largest_difference(tmp_path / "run", undisturbed) == []
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, STEPS + 1))
    stacks = [path.read_text() for path in (tmp_path / "run").glob("stacks-process-*.txt")]
    assert any("in run" in text and "loop.py" in text for text in stacks)


def test_a_process_that_never_comes_is_named(emoji_data_dir, tmp_path):
    flags = ["--config.limits.join=5"]
    with started(tmp_path / "run", emoji_data_dir, 2, flags, absent=[1]) as processes:
        assert processes.wait() == [75]
    assert "limits.join = 5" in processes.output() and "missing: process-1." in processes.output()
