"""The launchers: what they would run, that XLA knows their flags, and real processes on this machine."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import pytest
import yaml

from clips_jax.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent


def launch(script, *arguments, **environment):
    return subprocess.run(
        [ROOT / "launch" / script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=900,
    )


@pytest.fixture
def stub(tmp_path):
    """A stand-in for Python that runs a shell script; the launcher asks the real one for a free port."""

    def make(script):
        python = tmp_path / "bin" / "python"
        python.parent.mkdir(exist_ok=True)
        python.write_text(
            f'#!/usr/bin/env bash\n[ "$1" != -c ] || exec {sys.executable} "$@"\ncd {tmp_path}\n{script}\n'
        )
        python.chmod(0o755)
        return {"VIRTUAL_ENV": str(tmp_path)}

    return make


def test_local_tells_each_process_who_it_is(stub):
    done = launch("local.sh", "3", "--flag", "a b", **stub('echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: ${*: -2}"'))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"[{i}] {i} of 3: --flag a b" for i in range(3)]


def test_local_ends_all_when_one_fails(stub):
    start = time.monotonic()
    done = launch("local.sh", "2", **stub('[ "$JAX_PROCESS_ID" = 0 ] && exit 3; exec sleep 100'))
    assert done.returncode == 3
    assert time.monotonic() - start < 60


def test_local_starts_all_again_after_a_preemption(stub):
    script = 'echo x >> started; [ "$(wc -l < started)" -gt 2 ] || { sleep 0.5; exit 75; }'
    done = launch("local.sh", "2", **stub(script))
    assert done.returncode == 0, done.stderr
    assert "starting all again (2 restarts left)" in done.stderr


def test_local_does_not_restart_an_error_or_for_ever(stub):
    assert launch("local.sh", "1", **stub("echo x >> started; exit 1")).returncode == 1
    done = launch("local.sh", "--restarts", "1", "1", **stub("exit 75"))
    assert done.returncode == 75
    assert done.stderr.count("starting all again") == 1


@pytest.mark.parametrize("script", [["local.sh", "2"], ["restart.sh", "bin/python"]])
def test_a_launcher_hands_on_sigterm_and_does_not_restart(script, stub, tmp_path):
    environment = stub(
        "trap 'echo saved >> saved; exit 75' TERM; echo > ready$JAX_PROCESS_ID; while :; do sleep 0.1; done"
    )
    command = [ROOT / "launch" / script[0], *script[1:]]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment, stderr=subprocess.PIPE, text=True)
    count = 2 if script[0] == "local.sh" else 1
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready*"))) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "again" not in stderr
    assert (tmp_path / "saved").read_text() == "saved\n" * count


def test_restart_only_where_it_can_help(tmp_path, monkeypatch):
    def run(code, *options):
        (tmp_path / "count").write_text("")
        script = f"echo x >> {tmp_path}/count; {code}"
        done = launch("restart.sh", *options, "bash", "-c", script)
        return done.returncode, len((tmp_path / "count").read_text().splitlines())

    assert run("exit 1") == (1, 1)
    assert run("exit 75", "--times", "1") == (75, 2)
    assert run("kill -9 $$", "--times", "1") == (137, 2)
    monkeypatch.setenv("RESTART_HEALTHY_SECONDS", "0")  # each run was long enough: a month may have many restarts
    assert run(f"[ $(wc -l < {tmp_path}/count) -eq 4 ] || exit 75", "--times", "1") == (0, 4)


def test_two_processes_train_together(tmp_path, emoji_data_dir):
    flags = ["--config", "tests/two_steps_config.py", "--workdir", str(tmp_path / "run")]
    flags += [f"--config.data.data_dir={emoji_data_dir}"]
    # The workdir's own cache, and every program into it, however quickly it compiled.
    cache = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = launch("local.sh", "--devices", "2", "2", *flags, VIRTUAL_ENV=sys.prefix, **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0] 4 devices" in done.stdout
    assert [row["step"] for row in read_metrics(tmp_path / "run")][-1] == 2
    assert list((tmp_path / "run" / "compilation_cache").iterdir())


def test_the_jobset_is_valid():
    value = "gs://bucket/it's & all"
    done = launch(
        "gke.sh",
        *("--dry-run", "--name", "clips", "--type", "tpu-v5-lite-podslice", "--topology", "16x16"),
        *("--image", "registry/image:1", "--config", "configs/clips_l14.py", "--workdir", value),
    )
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    jsonschema.validate(manifest, json.loads((ROOT / "tests" / "jobset.schema.json").read_text()))
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}}
    job["spec"] = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    assert job["spec"]["parallelism"] == 64
    run = job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    words = subprocess.run(
        ["bash", "-c", f'set -- {run.partition("main ")[2]}; echo "${{@: -1}}"'], capture_output=True
    )
    assert words.stdout.decode().strip() == value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"spec": job["spec"] | {"paralelism": 1}}, "1.37", strict=True)


def test_the_slurm_job_is_valid(tmp_path):
    done = launch("slurm.sh", "--dry-run", "--nodes", "4", "--partition", "gpu", "--config", "a b", "--workdir", "w")
    job = tmp_path / "job.sh"
    job.write_text(done.stdout)
    assert "#SBATCH --partition=gpu" in done.stdout
    assert "--config a\\ b --workdir w" in done.stdout
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    for check in (["bash", "-n"], [shellcheck, "--exclude=SC1091"]):
        checked = subprocess.run([*check, job], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("action", [["create", "--x"], ["status"], ["install"], ["run", "--config", "c"], ["delete"]])
def test_the_pod_script_prints_what_it_would_do(action):
    options = ["--dry-run", "--name", "n", "--zone", "z", "--type", "v5litepod-256"]
    done = launch("tpu_pod.sh", *options, *action)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("gcloud compute tpus ") for line in done.stdout.splitlines())
    assert done.stdout.count("--zone z") == len(done.stdout.splitlines())


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke.sh", "slurm.sh", "local.sh", "restart.sh"])
def test_every_launcher_helps(script):
    for arguments in (["--help"], []):
        done = launch(script, *arguments)
        assert done.returncode == 2
        assert f"launch/{script}" in done.stdout + done.stderr


def compile_with_flags(platform, extra="true"):
    """One small program, compiled for a TPU or parsed flags for a GPU, with the flags of launch/xla_flags.sh."""
    program = {
        "tpu": "from jax.experimental import topologies as t; from jax.sharding import *; import numpy as np; "
        "d = t.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices; "
        "s = NamedSharding(Mesh(np.array(d), 'a'), PartitionSpec('a')); "
        "jax.jit(lambda x: x.sum()).lower(jax.ShapeDtypeStruct((4, 4), 'float32', sharding=s)).compile()",
        "gpu": "jax.numpy.ones(1)",  # XLA parses all flags, also those of platforms that are not there
    }[platform]
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    script = f'set -e; {extra}; source launch/xla_flags.sh {platform}; {sys.executable} -c "import jax; {program}"'
    environment = os.environ | quiet | {"TPU_WORKER_HOSTNAMES": "localhost"}
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(("platform", "variable"), [("tpu", "LIBTPU_INIT_ARGS"), ("gpu", "XLA_FLAGS")])
def test_xla_knows_the_flags(platform, variable):
    done = compile_with_flags(platform)
    assert done.returncode == 0, done.stderr
    assert compile_with_flags(platform, f"export {variable}=--xla_no_such_flag=1").returncode != 0
