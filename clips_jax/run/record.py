"""What a run was: `config.json` and `run.json` in the workdir, and whether a start fits what is there."""

import hashlib
import json
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh

from clips_jax.checkpoint import CheckpointMismatch, versions
from clips_jax.config import Config, SourceConfig, to_dict
from clips_jax.data.file_patterns import list_files
from clips_jax.data.tar_records import is_tars
from clips_jax.data.tars import TAR_ENDINGS
from clips_jax.data.triples import open_builder
from clips_jax.evaluators.results import write_atomically

CONFIG_FILE, RUN_FILE = "config.json", "run.json"

# Keys that do not decide what is computed, so a resumed run may change them.
FREE_KEYS = (
    "mesh.",
    "data.data_dir",
    "data.workers",
    "data.threads",
    "data.prefetch",
    "tokenizer.path",  # what lies there is checked by its hash
    "log_every_steps",
    "checkpoint.",
    "evaluation.",
    "limits.",
    "nonfinite.",
    "check_replicas_every_steps",
    "init_from",
    "init.",
)


def changed_keys(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{"a.b": (old, new)} of all keys that differ; a key that one of them lacks is "not there"."""
    old, new = _flat(saved), _flat(current)
    missing = "not there"
    return {
        key: (old.get(key, missing), new.get(key, missing))
        for key in sorted(old | new)
        if old.get(key, missing) != new.get(key, missing)
    }


def check_config(saved: dict[str, Any], current: dict[str, Any], path: Any, allow: bool = False) -> None:
    """Raises `CheckpointMismatch`, listing the keys, if `path` belongs to a run with another config.

    Keys that do not decide what is computed may differ, and so may all of them if `allow` is set; both are logged.
    """
    changed = changed_keys(saved, current)
    lines = {key: f"\n  {key}: {old} -> {new}" for key, (old, new) in changed.items()}
    refused = "".join(line for key, line in lines.items() if not key.startswith(FREE_KEYS))
    if refused and not allow:
        raise CheckpointMismatch(
            f"{path} belongs to a run with another config:{refused}\n"
            "Use a new workdir (init_from takes over the parameters), or go on all the same with --allow_config_change."
        )
    if lines:
        logging.warning("%s: the config has changed:%s", path, "".join(lines.values()))


def check_started(workdir: str, config: Config, allow: bool) -> None:
    """The same for a workdir that has a `config.json`, but perhaps no checkpoint yet."""
    path = epath.Path(workdir) / CONFIG_FILE
    if saved := _saved_config(path):
        check_config(saved, to_dict(config), path, allow)


def _saved_config(path: epath.Path) -> dict[str, Any]:
    """What `config.json` says; {} if there is none, or none that can be read: checkpoints have their own copy."""
    try:
        saved = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        saved = None
    if not isinstance(saved, dict):
        logging.warning("%s cannot be read: it is left out of account and written anew.", path)
        return {}
    return saved


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {key: value for name, item in tree.items() for key, value in _flat(item, f"{prefix}{name}.").items()}


def data_manifest(config: Config) -> dict[str, Any]:
    """Which data a run reads: each data set, and one hash of what describes their prepared files (shards and sizes).

    Pictures are not read; `dataset_info.json` lists the shards, their records and bytes, and a manifest that the
    preparation left, with the digests it knows, is included.
    """
    data, digest, described = config.data, hashlib.sha256(), {}
    for name, source in sorted((data.mixture or {"": SourceConfig()}).items()):
        dataset = source.dataset or data.dataset
        for file, content in _describing_files(dataset, source.data_dir or data.data_dir):
            digest.update(f"{name}\0{file}\0".encode() + content)
        described[name or "data"] = dataset
    return {"data_sets": described, "sha256": digest.hexdigest()}


def _describing_files(dataset: str, data_dir: str) -> list[tuple[str, bytes]]:
    """Names and contents; of tars their names and sizes."""
    if is_tars(dataset):
        tars = [epath.Path(path) for path in list_files(dataset, TAR_ENDINGS)]
        return [(tar.name, str(tar.stat().length).encode()) for tar in tars]
    folder = epath.Path(open_builder(dataset, data_dir).data_dir)
    names = ("dataset_info.json", "features.json", "manifest.json")
    return [(name, (folder / name).read_bytes()) for name in names if (folder / name).exists()]


def check_data(saved: dict[str, Any] | None, current: dict[str, Any], path: Any, allow: bool) -> None:
    """Raises `CheckpointMismatch` if the prepared data are not those that the checkpoint was trained on."""
    if saved and saved["sha256"] != current["sha256"]:
        names = ", ".join(current["data_sets"].values())
        message = (
            f"{path}: the data {names} have changed since (manifest {saved['sha256'][:12]} -> "
            f"{current['sha256'][:12]}), so the run would not go on with the same records."
        )
        if not allow:
            raise CheckpointMismatch(f"{message} Point data.data_dir to the old one, or use --allow_config_change.")
        logging.warning("%s", message)


def source_version() -> dict[str, Any]:
    """The git commit of this code, and whether files differ from it; {} outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def write_record(
    workdir: str, config: Config, mesh: Mesh, tokenizer: dict[str, Any], data: dict[str, Any], step: int
) -> None:
    """Writes `config.json`, and adds this start to `run.json`; process 0 alone."""
    folder = epath.Path(workdir)
    path = folder / RUN_FILE
    try:
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
    except (ValueError, KeyError, TypeError):
        logging.warning("%s cannot be read: started anew.", path)
        starts = []
    before = _saved_config(folder / CONFIG_FILE) or to_dict(config)
    devices = mesh.devices.flatten()
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "from_step": step,
        "command": sys.argv,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": versions(),
        "source": source_version(),
        "processes": jax.process_count(),
        "devices": {"count": int(mesh.size), "kind": devices[0].device_kind, "platform": devices[0].platform},
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "tokenizer": tokenizer,
        "data": data,
        "config_changes": {key: list(values) for key, values in changed_keys(before, to_dict(config)).items()},
    }
    write_atomically(folder / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")
    write_atomically(path, json.dumps({"starts": [*starts, start]}, indent=2) + "\n")
