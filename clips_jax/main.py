"""Trains CLIPS.

  python -m clips_jax.main --config configs/demo.py --workdir runs/demo

A config is a Python file; what follows a colon are its arguments, `--config.a.b=…` overrides single keys:

  python -m clips_jax.main --config configs/demo.py:method=clip --workdir runs/clip --config.seed=1
  python -m clips_jax.main --config configs/clips_b16.py:smoke=True --workdir runs/b16
  python -m clips_jax.main --config configs/clips_b16.py:stage=2 --config.init_from=runs/stage1 --workdir runs/stage2

The same command again resumes from the newest checkpoint in the workdir. The workdir receives `config.json`,
`run.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `train.log`, `results.json` and `report.html`.
`--print_config` shows every key of the resolved config and stops. Each config's docstring says what it trains and what
to expect.

SIGTERM on any process, and Ctrl-C, save and stop. Exit codes: 0 done; 75 start the same command again (preempted, or a
process was lost or hung); 130 stopped by Ctrl-C; 1 what the message says must be put right first.
"""

import json
import logging as standard_logging
import os
import sys
import traceback
from typing import NoReturn

# clu's writers import TensorFlow; its start-up lines are noise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
from absl import app, flags, logging
from etils import epath

from clips_jax.checkpoint import CheckpointMismatch
from clips_jax.config import ConfigError, to_dict
from clips_jax.config.command_line import define_config_flag, parse_flags, read_config
from clips_jax.data.bad_records import TooManyBadRecords
from clips_jax.run.stops import FAILED, DiskFull, Preempted, RunStopped, is_disk_full
from clips_jax.train import train

# What the system says of a path names it; a traceback would add nothing.
WRONG_PATHS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; created if it is not there.")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the resolved config as JSON and stop.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes of the run: found out on TPU pods, SLURM and GKE; elsewhere set JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Go on in a workdir that belongs to another config or other data; run.json tells."
)
PROFILE = flags.DEFINE_bool("profile", False, "Trace five steps, from the fourth on, into WORKDIR/profile.")


def quiet_terminal() -> None:
    """The terminal keeps warnings and the progress lines; INFO is for `train.log`."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setLevel(standard_logging.WARNING)


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
        cache_compilations(WORKDIR.value)
        train(
            config,
            WORKDIR.value,
            join=DISTRIBUTED.value,
            allow_config_change=ALLOW_CONFIG_CHANGE.value,
            profile=PROFILE.value,
        )
    except (ConfigError, CheckpointMismatch, TooManyBadRecords, *WRONG_PATHS) as error:
        leave(f"{type(error).__name__}: {error}", FAILED)  # the message says what to do; a traceback would bury it
    except RunStopped as error:
        leave(f"{type(error).__name__}: {error}", error.exit_code, together=isinstance(error, Preempted))
    except app.UsageError:
        raise
    except Exception as error:
        if is_disk_full(error):
            what = f"{WORKDIR.value}: the disk is full ({(str(error).splitlines() or ['?'])[0]})"
            leave(f"{DiskFull.__name__}: {what}. Make room and start the same command again.", FAILED)
        traceback.print_exc()
        leave("", FAILED)


def leave(message: str, exit_code: int, together: bool = False) -> NoReturn:
    """Ends this process; `together`: all processes of the run do, so that they can say good-bye to each other."""
    if message:
        logging.info("%s", message)
        print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized() and not together:
        logging.flush()
        os._exit(exit_code)  # JAX's own exit waits for processes that may be gone
    sys.exit(exit_code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
