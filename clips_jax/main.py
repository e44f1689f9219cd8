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
from ml_collections import config_flags

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError, to_dict
from clips_jax.config.check import check_mesh
from clips_jax.config.parse import from_config_dict
from clips_jax.sharding import join_processes
from clips_jax.train import NonFiniteError, train

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and its arguments: configs/NAME.py[:key=value,…]."
)
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


def main(argv: list[str]) -> None:
    """Reads the flags, checks the config, trains."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument {argv[1]!r}: flags start with --.")
    quiet_terminal()
    try:
        if CONFIG.value is None:
            raise app.UsageError("--config is missing: configs/NAME.py, configs/demo.py to begin with.")
        path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        if not os.path.exists(path):
            raise ConfigError(f"--config: there is no file {path}.")
        config = from_config_dict(CONFIG.value)
        if PRINT_CONFIG.value:
            print(json.dumps(to_dict(config), indent=2))
            return
        if not WORKDIR.value:
            raise app.UsageError("--workdir is missing: the folder that receives checkpoints, metrics and the report.")
        if DISTRIBUTED.value:
            join_processes()
        check_mesh(config, jax.device_count())
        log_to_file(WORKDIR.value)
        train(config, WORKDIR.value)
    except (ConfigError, CheckpointMismatch, NonFiniteError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")  # the message says what to do; a traceback would bury it


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with errors of one line: ml_collections raises from deep inside, or carries a traceback along."""
    try:
        rest = flags.FLAGS(argv)
    except AttributeError as error:  # --config.a.b=… where there is no such key
        cause = error.args[0]
        lines = str(cause.args[0] if isinstance(cause, Exception) else cause).splitlines()
        wrong = [a for a in argv if a.startswith("--config.") and f"{lines[0]}" in map(repr, _path(a))]
        sys.exit(f"ConfigError: {wrong[0] if wrong else lines[0]}: no such key. {' '.join(lines[1:])}".rstrip())
    except flags.Error as error:
        sys.exit(f"{str(error).strip().splitlines()[-1].removeprefix('clips_jax.config.')}\nSee --help.")
    return rest


def _path(argument: str) -> list[str]:
    return argument.removeprefix("--config.").partition("=")[0].split(".")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
