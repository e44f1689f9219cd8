"""Sweeps: every file is valid before anything runs; finished runs are skipped; failed ones are named at the end."""

import json
import sys

import pytest

from clips_jax.config import to_dict
from clips_jax.sweep import __main__ as command
from clips_jax.sweep import execute
from clips_jax.sweep.definition import load_sweep

SWEEPS = {"members": 30, "inverse_effect": 63, "ladder": 18, "conditioning": 9, "caption_weight": 21}

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


def test_equal_flops(monkeypatch):
    """Images times FLOPs per image is the same for every step, to within one batch; the dearest keeps its images."""
    cost = {"none": 1e6, "learnable": 3e6, "teacher_forced": 4e6}
    kinds = []

    def fake(config):
        kinds.append(config["model"]["captioner"]["kind"] if config["model"]["captioner"] else "none")
        return cost[kinds[-1]]

    monkeypatch.setattr("clips_jax.report.runs.flops_per_image", fake)
    runs = load_sweep("configs/sweeps/ladder_equal_flops.py", True, {})
    assert [config.total_steps for _, config in runs] == [80, 80, 80, 80, round(20 * 4 / 3), 20]
    assert kinds.count("none") == 4  # once per step, not per run
