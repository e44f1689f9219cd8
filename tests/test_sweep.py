"""Sweeps: every file is valid before anything runs; finished runs are skipped; failed ones are named at the end."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from clips_jax.config import to_dict
from clips_jax.sweep import __main__ as command
from clips_jax.sweep import execute
from clips_jax.sweep.definition import load_sweep

SWEEPS = {
    "members": 30,
    "inverse_effect": 63,
    "ladder": 18,
    "conditioning": 9,
    "caption_weight": 21,
    "data_or_size": 24,
}

# Stands for `clips_jax.main`: leaves behind what a run does, or fails, as its seed says.
STUB = """
import json, pathlib, sys
arguments = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(arguments["workdir"])
if arguments["config.seed"] == "1":
    sys.exit("ConfigError: no such luck")
(folder / "config.json").write_text((pathlib.Path(__file__).parent / f"{folder.name}.json").read_text())
step = 10 if arguments["config.seed"] == "2" else 20
(folder / "results.json").write_text('{"checkpoint_step": %d}' % step)
print("step 20/20")
"""
SWEEP = """
from clips_jax.sweep.definition import Run
def runs(smoke):
    for seed in range(4):
        yield Run(f"seed{seed}", "configs/clip.py:smoke=True", {"seed": seed})
"""


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_are_valid(name):
    path = f"configs/sweeps/{name}.py"
    assert len(load_sweep(path, False, {})) == SWEEPS[name]
    smoke = load_sweep(path, True, {"seed": "7"})
    assert 1 < len(smoke) <= 10
    assert all(config.total_steps == 20 and config.seed == 7 for _, config in smoke)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_can_be_a_job_of_a_cluster(name):
    runs = [run.name for run, _ in load_sweep(f"configs/sweeps/{name}.py", False, {})] + ["x" * 50 + "-1", "x" * 50]
    wanted = re.search(r"\$name =~ (\S+) ", pathlib.Path("launch/gke.sh").read_text())
    assert wanted
    jobs = [command.job_name(run) for run in runs]
    assert len(set(jobs)) == len(runs) and [job for job in jobs if not re.fullmatch(wanted[1], job)] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'Run("a", "configs/clip.py", {"optimizer.learning_rat": 1})',
            "run a: optimizer.learning_rat: configs/clip.py",
        ),
        ('Run("a", "configs/clip.py", {"batch_size": 0})', "run a: batch_size: 0; use 1 or more"),
        ('Run("a", "configs/clip.py", {"batch_size": "many"})', "run a: batch_size='many': expected int"),
        ('Run("a/b", "configs/clip.py")', "run 'a/b': names are unique"),
        ('Run("a", "configs/klip.py")', "run a: there is no file configs/klip.py"),
    ],
)
def test_errors_name_the_run_before_anything_starts(tmp_path, line, message):
    sweep = tmp_path / "sweep.py"
    sweep.write_text(f"from clips_jax.sweep.definition import Run\ndef runs(smoke):\n    yield {line}\n")
    with pytest.raises(SystemExit, match=message):
        command.main(["--sweep", str(sweep), "--workdir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_runs_skips_and_reports(tmp_path, monkeypatch, capsys):
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "stub.py").write_text(STUB)
    for run, config in load_sweep(str(tmp_path / "sweep.py"), False, {}):
        (tmp_path / f"{run.name}.json").write_text(json.dumps(to_dict(config)))
    monkeypatch.setattr(execute, "COMMAND", (sys.executable, str(tmp_path / "stub.py")))
    changed = json.loads((tmp_path / "seed3.json").read_text()) | {"batch_size": 7}
    (tmp_path / "runs" / "seed3").mkdir(parents=True)
    (tmp_path / "runs" / "seed3" / "config.json").write_text(json.dumps(changed))
    arguments = ["--sweep", str(tmp_path / "sweep.py"), "--workdir", str(tmp_path / "runs")]

    def run_all():
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        return stop.value.code, capsys.readouterr().out

    code, output = run_all()
    assert code == 1 and "1 of 4 runs are finished" in output
    assert "failed: seed1: exit 1: ConfigError: no such luck" in output
    assert "failed: seed2: it ended without results of its last step" in output
    assert "failed: seed3: the folder holds a run of another config (batch_size was 7, is 32)" in output
    assert "ConfigError: no such luck" in (tmp_path / "runs" / "seed1" / "output.log").read_text()
    code, output = run_all()
    assert "[1/4] seed0: finished before" in output and "[3/4] seed2: goes on" in output
    command.main([*arguments, "--print", "slurm"])
    jobs = capsys.readouterr().out.splitlines()
    assert len(jobs) == 3 and jobs[0].startswith("launch/slurm.sh --name seed1 --config=configs/clip.py")
    command.main([*arguments, "--dry_run"])
    assert "4 runs, 1 finished" in capsys.readouterr().out


def test_scale_shrinks_images_and_warm_up_alike():
    whole, part = (load_sweep("configs/sweeps/ladder.py", False, {}, scale) for scale in (1.0, 0.25))
    assert {config.total_steps for _, config in part} == {450}
    for (run, before), (again, after) in zip(whole, part, strict=True):
        assert run.name == again.name and again.overrides["total_samples"] == after.total_samples
        assert after.optimizer.warmup_samples * 4 == before.optimizer.warmup_samples
    (_, own), *_ = load_sweep("configs/sweeps/ladder.py", False, {"total_samples": "12800"}, 0.25)
    assert own.total_samples == 12800


def test_runs_side_by_side_overlap_and_share_the_cores(tmp_path, monkeypatch, capsys):
    """Each waits for the other to have started: one after another they would never end."""
    (tmp_path / "sweep.py").write_text(SWEEP.replace("range(4)", "(0, 3)"))
    waits = """
import os, time
(folder / "here").write_text(os.environ["NPROC"])
for _ in range(200):
    if len(list(folder.parent.glob("*/here"))) == 2:
        break
    time.sleep(0.1)
else:
    sys.exit("alone")
"""
    (tmp_path / "stub.py").write_text(STUB + waits)
    for run, config in load_sweep(str(tmp_path / "sweep.py"), False, {}):
        (tmp_path / f"{run.name}.json").write_text(json.dumps(to_dict(config)))
    monkeypatch.setattr(execute, "COMMAND", (sys.executable, str(tmp_path / "stub.py")))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    with pytest.raises(SystemExit) as stop:
        command.main(["--sweep", str(tmp_path / "sweep.py"), "--workdir", str(tmp_path / "runs"), "--parallel", "2"])
    output = capsys.readouterr().out
    assert stop.value.code == 0 and "2 of 2 runs are finished" in output
    assert "    seed3  step 20/20" in output  # lines say whose they are
    assert {path.read_text() for path in (tmp_path / "runs").glob("*/here")} == {"3"}


def test_a_run_that_asks_for_it_is_started_again(tmp_path, monkeypatch, capsys):
    """Exit code 75: the first run is through at its third start, the second never is."""
    (tmp_path / "sweep.py").write_text(SWEEP.replace("range(4)", "(0, 3)"))
    asks = """
with (folder / "starts").open("a") as file:
    file.write("x")
if arguments["config.seed"] == "3" or (folder / "starts").stat().st_size < 3:
    sys.exit(75)
"""
    (tmp_path / "stub.py").write_text(STUB.replace("if arguments", f"{asks}if arguments", 1))
    for run, config in load_sweep(str(tmp_path / "sweep.py"), False, {}):
        (tmp_path / f"{run.name}.json").write_text(json.dumps(to_dict(config)))
    monkeypatch.setattr(execute, "COMMAND", (sys.executable, str(tmp_path / "stub.py")))
    with pytest.raises(SystemExit):
        command.main(["--sweep", str(tmp_path / "sweep.py"), "--workdir", str(tmp_path / "runs")])
    output = capsys.readouterr().out
    assert "1 of 2 runs are finished" in output and "failed: seed3: exit 75" in output
    assert [(tmp_path / "runs" / f"seed{i}" / "starts").stat().st_size for i in (0, 3)] == [3, execute.STARTS]


def test_a_signal_ends_the_runs_in_progress_and_starts_no_other(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    stub = """
import pathlib, signal, sys, time
folder = pathlib.Path(dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])["workdir"])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "ended").touch(), sys.exit(75)))
(folder / "started").touch()
time.sleep(60)
"""
    (tmp_path / "stub.py").write_text(stub)
    starter = (
        "import sys; from clips_jax.sweep import execute, __main__;"
        f"execute.COMMAND = (sys.executable, {str(tmp_path / 'stub.py')!r});"
        f"__main__.main(['--sweep', {str(tmp_path / 'sweep.py')!r}, '--workdir', {str(tmp_path)!r}, '--parallel', '2'])"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/started"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "the same command goes on from here" in errors
    assert {path.parent.name for path in tmp_path.glob("*/ended")} == {"seed0", "seed1"}
    assert not (tmp_path / "seed2").exists()


def test_equal_flops(monkeypatch):
    """Images times FLOPs per image is the same for every step, to within one batch; the last keeps its images."""
    cost = {"none": 1e6, "learnable": 8e6, "teacher_forced": 4e6}
    kinds = []

    def fake(config):
        kinds.append(config["model"]["captioner"]["kind"] if config["model"]["captioner"] else "none")
        return cost[kinds[-1]]

    monkeypatch.setattr("clips_jax.report.runs.flops_per_image", fake)
    runs = load_sweep("configs/sweeps/ladder_equal_flops.py", True, {})
    assert [config.total_steps for _, config in runs] == [80, 80, 80, 80, 10, 20]
    assert [config.optimizer.warmup_samples / config.total_samples for _, config in runs] == [0.05] * 6
    assert kinds.count("none") == 4  # once per step, not per run
