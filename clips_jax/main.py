"""Trains CLIPS.

  python -m clips_jax.main --config configs/demo.py --workdir runs/demo

A config is a Python file; what follows a colon are its arguments, `--config.a.b=…` overrides single keys:

  python -m clips_jax.main --config configs/demo.py:method=clip --workdir runs/clip --config.seed=1
  python -m clips_jax.main --config configs/clips_b16.py:smoke=True --workdir runs/b16
  python -m clips_jax.main --config configs/clips_b16.py:stage=2 --config.init_from=runs/stage1 --workdir runs/stage2

The same command again resumes from the newest checkpoint in the workdir. The workdir receives `config.json`,
`checkpoints/`, `metrics.jsonl`, `tensorboard/`, `train.log`, `results.json` and `report.html`. `--print_config` shows
every key of the resolved config and stops. Each config's docstring says what it trains and what to expect.
"""

import json
import logging as standard_logging
import os
import sys

# clu's writers import TensorFlow; its start-up lines are noise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
from absl import app, flags, logging
from etils import epath

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError, to_dict
from clips_jax.config.check import check_mesh
from clips_jax.config.command_line import define_config_flag, parse_flags, read_config
from clips_jax.sharding import join_processes
from clips_jax.train import NonFiniteError, train

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; created if it is not there.")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the resolved config as JSON and stop.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes of the run: found out on TPU pods, SLURM and GKE; elsewhere set JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)


def quiet_terminal() -> None:
    """The terminal keeps warnings and the progress lines; INFO is for `train.log`."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setLevel(standard_logging.WARNING)


def log_to_file(workdir: str) -> None:
    """Sends INFO, clu's metric lines among them, to `WORKDIR/train.log` (local folders only)."""
    folder = epath.Path(workdir)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        if "://" not in workdir:
            to_file = standard_logging.FileHandler(folder / "train.log")
            to_file.setFormatter(logging.PythonFormatter())
            logging.get_absl_logger().addHandler(to_file)


def cache_compilations(workdir: str) -> None:
    """A run that starts again loads its compiled step from the workdir; JAX_COMPILATION_CACHE_DIR overrides."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(workdir) / "compilation_cache"))


def main(argv: list[str]) -> None:
    """Reads the flags, checks the config, trains."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: flags start with --.")
    quiet_terminal()
    try:
        config = read_config(CONFIG)
        if PRINT_CONFIG.value:
            print(json.dumps(to_dict(config), indent=2))
            return
        if not WORKDIR.value:
            raise app.UsageError("--workdir is missing: the folder that receives checkpoints, metrics and the report.")
        if DISTRIBUTED.value:
            join_processes()
        cache_compilations(WORKDIR.value)
        check_mesh(config, jax.device_count())
        log_to_file(WORKDIR.value)
        train(config, WORKDIR.value)
    except (ConfigError, CheckpointMismatch, NonFiniteError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
