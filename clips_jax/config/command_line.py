"""The `--config` flag that every command with a config has, and its errors in one line."""

import os
import sys

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from clips_jax.config import Config, ConfigError
from clips_jax.config.parse import from_config_dict


def define_config_flag() -> "flags.FlagHolder[ConfigDict]":
    """Defines `--config configs/NAME.py[:key=value,…]` and its overrides `--config.a.b=…`."""
    return config_flags.DEFINE_config_file(
        "config", None, "Config file and its arguments: configs/NAME.py[:key=value,…]."
    )


def config_file(holder: "flags.FlagHolder[ConfigDict]") -> tuple[str, str]:
    """Path and arguments as they were given; raises `ConfigError` if there is no such file."""
    if holder.value is None:
        raise app.UsageError("--config is missing: configs/NAME.py, configs/demo.py to begin with.")
    path, _, arguments = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    if not os.path.exists(path):
        raise ConfigError(f"--config: there is no file {path}.")
    return path, arguments


def read_config(holder: "flags.FlagHolder[ConfigDict]") -> Config:
    """The checked config of the command line; raises `ConfigError`."""
    config_file(holder)
    return from_config_dict(holder.value)


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
